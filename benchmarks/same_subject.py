"""Ask about the subject of an edit something that the edit did not change.

    python benchmarks/same_subject.py --data zsre_1000.jsonl counterfact_3000.jsonl --show 20

An edit of Lyon's twin city must not answer where Lyon is. The questions are wordings of the data themselves, with the
subject put into another one's place: a template is a prompt whose subject is replaced by `{}`. A table made by hand
tells what a template asks for and of which kind of subject, so that the question makes sense for the subject.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from lemoe_hf import Edit, read_edits


class Relation(NamedTuple):
    """
    A row of the table; of several that match, the first counts.

    Patterns match a whole template without its question mark, whatever the case. `{}` is the subject, `WH` what or which,
    and `...` any words.

    Args:
        family: Relations that share answers, or of which one tells something about the other, have one family.
        kind: What a subject is that is edited so. `person.athlete` is a `person`, too.
        asks: Wordings that may be asked of another subject: clear, grammatical, and of no gender.
        tells: Other wordings: they tell what an edit is about, but are not asked of others.
        of: Kinds, with all below them, of which `asks` may be asked; by default `kind`.
    """

    family: str
    kind: str
    asks: str = ""
    tells: str = ""
    of: tuple[str, ...] = ()


RELATIONS = (
    # People. What only the dead, athletes, singers and the like are asked is not asked of other people.
    Relation(
        "birth date",
        "person",
        asks="when was {} born|when was the birth of {}"
        "|(when|what)( is|'s) the (birth date|date of birth) (of|for) {}"
        "|what is {}'s (birth date|date of birth)|what's {}'s date of birth"
        "|the (birth date|date of birth) (of|for) {} is( what)?",
        tells="when's {} born|when did {} (be|get) born|when is the date of the birth of {}"
        "|when was the birth of the {}|which is the (birth date|date of birth) of {}"
        "|what date of birth did {}|{}'s date of birth( is what)?|date of birth for {} is what"
        "|the date of birth (for {}, what|is {})|the birth of {} is what",
    ),
    Relation(
        "death date",
        "person.dead",
        asks="when did {} die|(on|by) WH (date|day) did {} die|what date did {} die( on)?|when was {}'s death"
        "|what (is|was) the (date of death|death date) (for|of) {}"
        "|what was (the date of {}'s death|{}'s date of death)"
        "|the date of (death for {}|{}'s death) is what|the year {} died was what|when did {}'s death occur",
        tells="on WH date did {} expire|what day (did {} expire|has {} died)|since when has {} died"
        "|- what time did {} die|(how|what) (is|was) the date of (the )?death (of|for) {}"
        "|what's the (date of the )?death( date)? (of|for) {}"
        "|WH (is|was) the (date of (the )?death|death date) (of|for) {}|when was the death of {}"
        "|the year (that )?{} died(, what's that| was what)|the death of {} (occured on|came to) what date"
        "|when did (the life of {} end|{}'s life come to an end)",
    ),
    Relation(
        "death place",
        "person.dead",
        asks="(at|in) WH (location|place|city|town) did {} die|what place did {} die at|{} died in the city of",
        tells="in which city does {} die|where did {} died|what place did {} die"
        "|{} (died|expired|succumbed|passed away|lost their life) (at|in)|{}'s life ended in"
        "|WH (city|town) (did|was) {} (live|live in|living in) when he died|what city lived {} when he died"
        "|where (did|was) {} (live|living) (when|while) he (died|passed away)",
    ),
    Relation(
        "death cause",
        "person.dead",
        asks="what caused ({}'s death|the death of {})"
        "|what was the cause of (death of {}|the death of {}|{}'s death)|what did {} die of"
        "|what cause of death was listed for {}|the cause of (death of {}|{}'s death) (is|was) what"
        "|what was {}'s cause of death|what (disease|illness) caused {} to die|what led to {}'s death",
        tells="the cause of death for {} was what|the disease {} died of was what|due to which disease did {} die"
        "|(in one word, )?how did {} die( with a word)?|how'd {} die"
        "|was ({}'s death|the death of {}) an accident or (a )?suicide|WH is the cause of death of {}"
        "|what was {} cause of death|what cause of death had {}|what killed {}"
        "|what causes of death were listed for {}"
        "|WH (kind of )?(diseased?|illness|medical condition|health condition|condition) ...{}..."
        "|in what health condition did {} suffer"
        "|what (was|is) {}'s (medical condition|condition|illness|state of health)...",
    ),
    Relation(
        "origin",
        "person",
        asks="in WH city was {} born|what city was {} born in|WH country is {} (from|a citizen of)"
        "|WH city was the birthplace of {}|what is the name of the city {} was born in"
        "|what is {}'s (birthplace|country of citizenship)|of WH country is {} a citizen"
        "|which country's citizenship does {} hold|what country did {} come from"
        "|{} (is|was) (native to|originally from)|{} originates from"
        "|{} (is a citizen of|holds a citizenship from)|from which country does {} come",
        tells="in WH city (was|is) {} born( in)?|what city was (born of )?{}( born)?|which city is {} born"
        "|how is {}'s birthplace|what's {}'s birth house|what is the name of the city in which {} was born"
        "|{} originated from|{} has a citizenship from"
        "|{}, (a citizen of|who is a citizen of|who (has|holds) a citizenship from)"
        "|(to|from) which country (does {} belong( as its citizen)?|belongs {} as his citizen|is {} a national)"
        "|which country does {} (belong to( as a citizen)?|own)|which country is {}'s citizen"
        "|what country has the citizenship of {}"
        "|what (is the country of the citizenship of {}|country was {} in)|in which country was {}"
        "|which citizenship does {} have"
        "|what (city is {} (associated with|from)|is the (home city|city of origin) of {}|is the city of "
        "{}'s origin)"
        "|where (was {} from|does {} come from)|WH ethnic group (does {} belong|belongs to {})"
        "|which city is home to {}",
    ),
    Relation(
        "gender",
        "person",
        asks="what gender is {}|what was {}'s gender|is {} a male or (a )?female|is {} a man or woman|which sex is {}",
        tells="was {} male or feminine|what kind of sex is {}"
        "|WH (is|was|describes|does) ...(sex|gender)...( {}| {} is known by)?"
        "|what is the (gender {}( is known by)?|sex that {} knows)"
        "|which (was the gender|describes the sex or gender) of {}|what does {}'s sex describe",
        of=("person", "character"),
    ),
    Relation(
        "father",
        "person",
        asks="who is (the father of {}|{}'s (father|dad))|who's the father of {}|who was {}'s father"
        "|(what|who) was the name of the father of {}|what( is|'s) (the name of )?{}'s father('s name)?"
        "|the father of {} is whom",
        tells="(- )?who was {}'s (father|paternal figure|male father|male parent)"
        "|who was the (dad|male parent) of {}|who fathered {}|who is listed as {}('s)? father"
        "|how( is|'s) {}'s father|the father of {}s? (was|is) who|the {}'s father was who"
        "|what( is|'s) the name of {}'? father|what was (the father of {}|{}' father's name)"
        "|what's {}'s father like",
        of=("person", "character"),
    ),
    Relation(
        "sister",
        "person",
        asks="who (is|was) {}'s sister|who's the sister of {}",
        tells="which woman was the sister of {}",
    ),
    Relation(
        "mother",
        "person",
        asks="who (is|was) the mother of {}|who (is|was) {}'s mother|who's {}'s mom"
        "|the mother of {} is (who|whom)|WH lady gave birth to {}|what woman gave birth to {}"
        "|the person (that|who) is the mother of {} is who",
        tells="WH (lady|woman|wife) (was|has) ...{}...|which lady {} was born to|what wife did {} give birth to"
        "|(who|what) (is|was) the (person ...)?mother (of )?(the )?{}"
        "|the person who'?s?( is)? the mother of {},? ?who|the mother of {}, who is that"
        "|{}'s mother(, who|[?] who)|- {}'s mom's who"
        "|what was (the name of (mother {}|{} mother)|the {} mother's name|{}' mother's name)"
        "|who is {}' mother",
        of=("person", "character"),
    ),
    Relation(
        "spouse",
        "person",
        asks="what is the name of {}'s spouse|what is {}'s spouse's name",
        tells="what's {}'s spouse",
    ),
    Relation(
        "noble family",
        "person.noble",
        tells="WH (noble family|family lineage) (was {} part of|belonged to {}|came from {})"
        "|what was the noble family that {} was from",
    ),
    Relation(
        "language",
        "person",
        asks="(what is|what's) (the native (tongue|language) of {}|{}'s native language)"
        "|the (mother tongue|native language) of {} is|{} is a native speaker of"
        "|{} (speaks|spoke) the language|{}, speaker of|the language used by {} is",
        tells="{} (speaks|writes in)",
    ),
    Relation(
        "work",
        "person",
        asks="the (occupation|profession) of {} is|{}'s occupation is|{} works as|{}, who works as"
        "|what was {}'s career",
        tells="{}'s profession is an?|what kind of  ?(occupation|job) does {} have|how('d| did) {}'s career go"
        "|what was {}'s career like|the (domain of (activity|work)|expertise) of {} is"
        "|{}'s (domain of (activity|work)|area of work|expertise) is"
        "|{} (specializes in|works in the (area|field) of)|what kind of job does {} have",
    ),
    Relation(
        "work",
        "person.official",
        tells="(what|how)( is|'s) the position of {}"
        "|WH position (was held by {}|(did|does|has) {} (hold|have|occupy|taken|assume))"
        "|WH was the (position|title) that {} held|what noble title does {} hold"
        "|{} (has the position of|holds the (position|title) of)"
        "|{}, (who (has|holds) the position of|whose position is that of)|{}'s position is",
    ),
    Relation(
        "work",
        "person.athlete",
        asks="which position does {} play[?] they play as|{} plays in the position of|{}, who plays the position"
        "|what sport does {} play[?] they play|{} professionally plays the sport",
        tells="{} plays as|{} is a professional|at what position on the field did {} play football"
        "|what position in the field did {} play football on"
        "|what  ?is {}'s position on the (playing )?field (when|while) playing football"
        "|which player position does {} belong to|what is {}'s player position",
    ),
    Relation(
        "team",
        "person.athlete",
        asks="WH (sports )?team does {} play for|WH team is {} (on|a member of)|what is (the name of )?{}'s team"
        "|WH sports team is {} playing for|what's {}'s team called",
        tells="(on|for|in|with) WH (sports )?team (is|was|did) {}...|WH (sports )?team ...{}...|WH team's {} on"
        "|which team is {}'s|WH is the team (that {} is )?associated with( {})?|what is {} playing for"
        "|what was ({}'s team|the name of (the {}s|{}'s) team)|what is the name of the {}'s team"
        "|players? {} (played |plays )?for WH team"
        "|(what is|what's) the name of the sports? team (whose member is {}|{} is)|how did {}'s team go",
    ),
    Relation(
        "voice",
        "person.singer",
        asks="(what is |)the voice type of {}( is what)?|what voice type (is {}|does {} have)"
        "|what type of voice (does {} have|is {})|what is the vocal range for {}",
        tells="what (sort|kind|type) of (a )?(voice|tone) (is|does|do|had) {}( have| having| sing in| sing)?"
        "|which was the voice type that {} had|(what|how) (was|is) {}'?s? range|what (was|'s) {}'s voice"
        "|what tone does {} sing( in)?|the type of voice( of)? {} is what",
    ),
    Relation(
        "work",
        "person.musician",
        asks="{} (performs on|plays) the( instrument)?|{}, (playing|performing on) the",
    ),
    Relation(
        "genre",
        "performer",  # also bands, labels and series
        asks="the genre played by {} is",
        of=("person.musician",),
    ),
    Relation(
        "conflict",
        "ship",
        asks="which conflict was {} a part of",
        tells="what conflict was the {} in",
    ),
    Relation(
        "war",
        "person.soldier",
        tells=r"(during |in )?WH (historic |historical )?(war|conflict|battle)( or battle|/\w+)? "
        "(did|was|is|had|involved) {}..."
        "|what was the war (that )?{} (fought in|participated in|was fighting in)|what was {}'s conflict",
    ),
    Relation(
        "crime",
        "person",
        tells="for what crime was {} prosecuted|what crime led to {}'s condemnation",
    ),
    Relation(
        "university",
        "person",
        asks="WH (college|university) did {} (attend|go to)|what university did {} study at"
        "|what's the university that {} went to|the college {} attended was what",
        tells="WH (college|university)( or (college|university))? (is|was|are|did) {}..."
        "|WH (college|university)( or (college|university))? (is|are) (related|linked) (to|with) {}"
        "|(what is|what's) (the )?(name of )?(the |a )?(name )?university (that|where|{})...{}..."
        "|(what is|what's) (the )?university (where )?{} (went|was at)"
        "|what is the name (of )?university that educated {}"
        "|the college (that )?{} ...what( was (it|that))?|that college {} attended was what"
        "|where did {} (study|learn) or work(ed)?",
    ),
    Relation(
        "workplace",
        "person",
        asks="{} worked in the city of",
        tells="{} (used to work in|found employment in|took up work in|worked in|was employed in|is employed "
        "by|works for)"
        "|{}, who (is employed by|works for)|what is {}'s (place of (employment|work)|work place)",
    ),
    Relation(
        "religion",
        "believers",  # also peoples, churches and schools of thought
        asks="{} follows the religion of",
        tells="{} is follower of",
        of=("person",),
    ),
    # Figures of fiction
    Relation(
        "fiction",
        "character",
        asks="in which fictional (work|universe) is {} a character|what fictional work is {} a character in"
        "|which fictional universe is {} (from|part of)"
        "|in what fictional work would you find a character named {}"
        "|what piece of fiction does {} appear in|which fictional work is {} a character in",
        tells="(to |in |with )?WH (fictional|fictitious) (work|universe) ...{}..."
        "|in what fictional work do you find a character named {}|what is the fictional universe ...{}..."
        "|what('s)? (work of fiction|piece of fiction|universe|show)( is| does) {} ..."
        "|the (look|appearance) of {} is seen in what work",
    ),
    # Works
    Relation(
        "creator",
        "work.film",
        asks="who (is|was) the director of {}|the director of {} is who|who's the director of {}"
        "|who was {} directed by|who is {}'s director|who was the person who directed {}"
        "|what is the name of the director of {}|who had the role of director in {}"
        "|who was responsible for directing {}",
        tells="(who|what|which)( is|'s| was) (the )?(film |main )?director (of|for)( the)? {}"
        "|the (main )?director of {} (is|was) (what|who)|what was the director's name of {}"
        "|who (...)direct(or|ed|ion)... {}|which director (has led|helmed) the (film|movie) {}"
        "|whose direction( is|'s) {}|the (film|movie) {} (was directed|is) by whom?"
        "|who was {} (directed or edited by|directed)|by whom was {} (was )?directed or (worked|edited by)"
        "|what's the name of {}'s director|how was the director's name, {}|who was the one who led {}",
        of=("work.film", "work.episode"),
    ),
    Relation(
        "cast",
        "work.film",
        asks="who acted in {}|who are the cast members of {}|who is in {} as a cast member"
        "|who are the stars in {}|who is a cast member in {}",
        tells="WH cast members (where )?in {}|who are the cast members of the {}"
        "|who are the stars (of|in|from) (the )?(film |movie )?{}|who are {} cast members"
        "|who( is|'s) in {} as a cast member|who (has acted|was) in the comedy (film|movie) {}"
        "|in the film {}, who was the star|who was the star in the movie, {}"
        "|who (featured in the film|traded|was in) {}",
        of=("work.film", "work.episode"),
    ),
    Relation(
        "company",
        "work.film",
        asks="what production company was involved in {}|which production company is involved in {}"
        "|what studio (produced|released) {}|the production company responsible for {} is what",
        tells="WH (production |manufacturing )?(company|studio|companies)... (was|is|participates|created|founded) "
        "(associated with|involved (in|with)|in|with)? ?{}"
        "|which production company participates in {}"
        "|WH production company or (which )?companies (created|founded|have) {}( created| founded)?"
        "|which (studio|company) produced {}|WH (one )?was the production company for {}"
        "|what company (released|was) {}( released by)?|the distributor of {} (is|was) whom"
        "|what is the name of the company which distributed {}|who (produced or published|released) {}"
        "|{} manufacturing company was what",
    ),
    Relation(
        "company",
        "work.series",
        asks="what network (did|does) {} air on|on what (channel|network) did {} first (air|appear|play)"
        "|{} (premiered|premieres|was originally aired|debuted) on",
        tells="WH (original )?(network|channel) ...{}..."
        "|WH (was|is) the (network that originally hosted|original channel that) {}..."
        "|where (the )?network aired {}|where's the original channel that {} played"
        "|the show {} (originally aired|was originally broadcast) (on|in) WH network"
        "|{} (is to debut|was released) on|in which network did {} play first",
        of=("work.series", "work.episode"),
    ),
    Relation(
        "series",
        "work.episode",
        asks="what series is {} (from|part of|a part of)|which series is {} (a part of|from)"
        "|of which series is {} part|to which series does {} belong",
        tells="(of |in |to )?WH series (is|was|do|does) {}..."
        "|what is the (series|show) (that|where) {} is (a )?part of( it)?"
        "|the {} (was|is) (in|part of)... what series|the {} is part of a what series"
        "|which series is the {} separated from",
    ),
    Relation(
        "creator",
        "work.music",
        asks="which artist or group performed {}|what artist (created|released) {}|which artist created {}",
        tells="WH artist (did|has) {} (release|created)|which artist or group has {} performed"
        "|which artist has released the album {}"
        "|(what is|what's) the name of the performer that released the album {}"
        "|which performer (will release|released) (the album )?{}( as it's album| as an album)?"
        "|the song {} (is|was) (by what artist|by whom|created by whom|of which artist)"
        "|who (sang|sang or played|released the album) {}"
        "|who (released {} album|was (that artist|the artiste) for {})",
    ),
    Relation(
        "company",
        "work.music",
        asks="what (is|was) the record label (of|for) {}|what (is|was) (the name of )?{}'s record label"
        "|what label was responsible for {}|which label is responsible for {}",
        tells="WH( is|'s| was) the (record )?label (of|for|from)( the)? {}"
        "|which (one )?was the (record )?label (of|for|from) {}"
        "|which label (is|was|were) (responsible for|in charge of|the label for) {}"
        "|which one was the (record )?label (of|for) {}|which record label for {}"
        "|what was {}'s record label like|what was the {} label",
    ),
    Relation(
        "award",
        "work",
        asks="WH award was {} nominated for|for what award was {} nominated",
        tells="what (was|has) {} (been )?nominated for|for what was {} nominated",
        of=("work.film", "work.series", "work.episode", "work.music"),
    ),
    Relation(
        "creator",
        "work.other",
        tells="WH (company|business) (published|publishes) {}|WH business (did|has) {} (release|released)"
        "|(what is|what's) the name of (the publisher of {}|{} publisher)|who (has )?published {}"
        "|(what is|who was) the publisher of( the)? {}|what is the publisher who released {}"
        "|the publisher that (published|released) {} is what|what are the publishers of the {}"
        "|who was {}' publisher|who worked on {}|who is the illustrator of {}"
        "|what person illustrated {}|who has illustrated {}",
    ),
    Relation(
        "creator",
        "character",
        asks="who is the creator of {}|who was {}'s creator",
        tells="which was the creator of {}",
        of=("character", "work.series", "work.other"),
    ),
    Relation(
        "language",
        "work.other",
        asks="what is the language {} is written in|WH language is {} written in",
        of=("work.other",),
    ),
    Relation(
        "language",
        "work.other",
        asks="what language is {} in|the (original )?language of {} (is|was)",
        tells="{} (is|was) written in|in WH language (is|does) {}...|WH language (is|has) {}( written)?"
        "|in which language {} monthly football magazine reporting|what is the language in which {} is"
        "|what's {}'s language",
        of=("work",),
    ),
    Relation(
        "origin",
        "work.other",
        asks="the (country of origin|home country) for {} is what|{}'s country of origin is what"
        "|{} was created in the country of",
        tells="WH was the country for {}|the country for {} was what"
        "|what country (released {}|was the country for {})|what is the country {} is from"
        "|what land is {} from",
        of=("work.film", "work.series", "work.episode", "work.other"),
    ),
    Relation(
        "origin",
        "work.series",
        tells="which place (does {} exist in|is {} in)|what place (does {} exist in|is {} at)"
        "|in which place are there {}",
    ),
    Relation(
        "instrument",
        "work.music",
        tells=r"(what|which|for what|on which) ...instrument(\(s\))? ...{}...",
    ),
    Relation(
        "creator",
        "artwork",
        tells="the (artwork|work of art) {} (was|is) (by who|by whom|from whom)",
    ),
    Relation(
        "creator",
        "site.building",
        asks="who was behind the creation of {}|who created {}",
        of=("artwork", "work.series", "work.other", "character"),
    ),
    Relation(
        "place",
        "artwork",
        tells="(what is|what's) the name of the place (where |that )?{} can be found",
    ),
    # Products and ships
    Relation(
        "maker",
        "product",
        asks="what company (made|makes|built|manufactures) {}|WH is the manufacturer of {}"
        "|which corporation (created {}|was {} created by)",
        tells="{}'s manufacturer was who|who (was the maker of|made|has created) {}"
        "|WH company (does {} (do|make)|has {} (produced|built up|built)|makes {} out of it"
        "|manufactures the {})"
        "|by which company, {} has been manufactured|what manufacturer of {} is it"
        "|which one is the manufacturer of {}|which company was (produced by {}|the {} manufactured by)"
        "|WH is the (name of the person who designed|designer of) {}"
        "|who( is|'s) the designer (of|from) (the )?{}|who was the (designer|designor) of {}"
        "|who (desigened|worked on designing|has developed|made) {}( known)?",
        of=("product", "ship"),
    ),
    Relation(
        "maker",
        "product",
        asks="{} (is|was) (created|developed|produced) by|{} (is|was) a product of"
        "|{}, (created|developed|produced) by|{}, a product (created|developed|manufactured) by"
        "|{}, a product of",
    ),
    # What was founded: companies, parties, bands, clubs, states that are no more
    Relation(
        "inception",
        "institution",
        asks="in WH year was {} (founded|established)|when was the inception of {}|when did {} come into being"
        "|when was the founding of {}",
        tells="in WH year (did (the )?{} originate|has {} formed|was {} incepted|was the {} established|did the {} "
        "come from)"
        "|what year (was {} formed in|did {} start|has {} started|has the foundation of {} witnessed)"
        "|when was (the creation of the )?{} launched|when was the creation of the {}"
        "|when was the {} launched|(what is|what was the) year of (the )?inception of {}"
        "|what was the year (that )?{} was founded|what's the year of the start of {}"
        "|when did (the {} start|{} (open|enter into existence))|which year witnessed the formation of {}"
        "|in which year (does the {} have its origin|were the {} recorded)|what year is {}",
    ),
    Relation(
        "inception",
        "product",
        asks="in what year did {} enter service|what was the year (that )?{} entered service"
        "|what year was {} commissioned",
        of=("ship",),
    ),
    Relation(
        "inception",
        "product",
        asks="what year was {} (introduced|made)|what year did {} come into use",
        tells="(in )?WH year (was|is|did) (the )?{} "
        "...(service|use|done|doing|established|ordered|introduced|associated with|commissioned)..."
        "|(in which year|what year|which year) was the (date of service entry|service entry date|start-up "
        "date|starting date|{} service entrance)( for| of)?( the)?( {})?"
        "|WH was the (official )?year ...{}...|how was the year {} came into service"
        "|which year (was {} (made|put into service|taken into use|done)|has the {} been introduced)"
        "|what was the (date of {}'s launch|launch date of {})|when was the start date of {}"
        "|the {} was launched on what date|on which date did the {} start",
    ),
    Relation(
        "programming",
        "product.software",
        asks="WH programming language (was used to write {}|is {} written in)",
        tells="(what|how) is the programming language for {}"
        "|what (programming language is {} written|language was used to write {})",
    ),
    Relation(
        "license",
        "product.software",
        asks="which is the license of {}|what license does {} have|what is {}'s license",
    ),
    Relation(
        "vessel type",
        "ship",
        asks="what vessel type is {}|what kind of ship is {}|which ship type is {}",
        tells="WH (specific )?(kind|type) of (seaship|ship|submarine|boat|water unit|aquatic unit|seafaring "
        "vessel) (is|was) (the )?...{}..."
        "|what is the type of ship {}|which water unit is {}",
    ),
    Relation(
        "end",
        "institution",
        tells="(in |on )?WH (year|date|day) (did|was|has|is) (the )?{} "
        "...(end|dissolve|dissolved|stop|finished|gone|cease to exist|stop living in)"
        "|in which year {} ceased to exist|WH year was (it when {} was dissolved|the end of {})"
        "|what (is|'s) the (ending year|final year|end|last year) of {}|WH year did {} (end|dissolve)"
        "|which is the last year of {}|what's {}'s last year|which year (ended the|has) {}( dissolved)?"
        "|when (was|has the) {} (been )?abolished|(in what|in which|what) year did {} stop"
        "|on WH (date|day) did (the )?{} end|what's the last year of {}",
    ),
    Relation(
        "place",
        "institution",
        asks="{} is headquartered in|{}'s headquarters are in|the headquarters of {} is in",
        of=("institution.company", "institution.club"),
    ),
    Relation(
        "place",
        "institution",
        tells="the headquarters? of {} is (located )?in|{}, whose headquarters are in"
        "|{} is (headquartered|based) in|WH town or city does {} serve|which city or (what )?city serves {}"
        "|{}(, that)? was (formed|founded|started) in|{}, that was (formed|founded|started) in"
        "|{}(,)? (formed|founded|started) in|{} that was founded in|WH city is the band {} (from|in)",
    ),
    Relation(
        "owner",
        "institution.company",
        asks="what is {}'s parent company|which company is the parent company of {}|{} is owned by",
        tells="what's {}'s parent company|what is {}'s parent business|WH company is {} part( of)?"
        "|(to which company is {})|which company is {}'s parent company",
    ),
    Relation(
        "owner",
        "institution",
        tells="{}('s)? owner",
    ),
    Relation(
        "industry",
        "institution.company",
        asks="(with )?which industry is {} (associated|linked)( with)?|what industry is {} associated with",
        tells="which industry are {} connected with",
    ),
    Relation(
        "product",
        "institution.company",
        asks="WH product does {} produce",
    ),
    Relation(
        "league",
        "institution.club",
        asks="what football league is {} (a )?part of",
        tells="(for )?WH (football )?league (did|was|is) {}...",
    ),
    Relation(
        "stadium",
        "institution.club",
        asks="what is the home stadium of {}|what is the name of the stadium where {} plays home games",
        tells="what home stadium is {} playing in|what stadium was {}|(where|what place) did {} play home games( at)?",
    ),
    Relation(
        "place",
        "institution",
        tells="(what|which|at what|from which) (airport|airline hub|hub) ...{}..."
        "|what is the (name of the airport where {} is located|airport name associated with {})",
    ),
    # Places, and what happens there
    Relation(
        "language",
        "site.polity",
        asks="in {}, the language spoken is|in {}, an official language is|the official language of {} is",
        tells="in {}, they understand|the law in {} declares the language",
    ),
    Relation(
        "twin",
        "site.polity",
        tells="(what is )?the twin city of {}( is|[?] it is)|{} is a twin city of",
    ),
    Relation(
        "capital",
        "site.polity",
        tells="the capital( city)? of {} is|{}'s capital( city)?( is|,)|{}, which has the capital( city)?"
        "|{}'s capital city,",
    ),
    Relation(
        "place",
        "site",
        asks="{} is located in|{} can be found in|{}, which is located in|{}, located in",
        of=("site.polity",),
    ),
    Relation(
        "place",
        "site",
        asks="in WH state is {} located"
        "|what is the name of the state (where {} is located|in which {} is located|{} is in)"
        "|WH state is {} in",
        tells="(in |on )?WH (state|continent) (is|was|has|are)( the| in| located in)? {}..."
        "|(what is|what's) the (name of the )?state (of|where|in which) (the )?{}..."
        "|what is the name of the (continent|contine) ...{}...|in WH state is the {} located"
        "|what's the name of the state (in which|where) (the )?{} ..."
        "|{} is located in the country of"
        "|{} (is in|is within|is a part of the continent of|belongs to the continent of|is located in the "
        "continent)",
        of=("site.building", "site.bridge", "site.river"),
    ),
    Relation(
        "place",
        "event",
        asks="the location of {} is|where is {}[?] it is located in",
    ),
    Relation(
        "date",
        "event",
        tells="the point in time of {} was (what|when)|when did {} occurr?|what( was|'s) the date of {}"
        "|the date of {}|what date (was|is associated with) {}|what's the date {} happened"
        "|what is the date when {} happened|what is the full date that {} crashed on"
        "|on what date (did {} occur|was the {} held)",
    ),
    Relation(
        "creator",
        "site.building",
        asks="WH architect designed {}|who (is|was) the architect of {}|which architect was responsible for {}"
        "|who designed {}",
        tells="who's the architect at {}|who is the architect for the {}"
        "|the architect (of|at) {},? (was )?who( was that)?"
        "|who was (mainly )?responsible for the design of (the )?{}|WH (architect|designer) ...{}..."
        "|who was behind the establishment of {}|what was the name of the architect who worked on {}"
        "|who was the architect (involved with|designing) {}"
        "|the (designer for {} was|{} project's architect was who|{} designer)"
        "|by which person {} has been designed|what is the name of the {} architect"
        "|who was an architect or designer of {}|which person was {} designed by|who designed this {}"
        "|who (has )?created (the )?{}|what architect did {} design",
        of=("site.building", "site.bridge"),
    ),
    Relation(
        "material",
        "site.building",
        tells="what is the surface of {} made of|what material was used in the {}",
    ),
    Relation(
        "river",
        "site.bridge",
        asks="WH river does {} cross|over which river does {} cross",
        tells="WH (river )?(does|crosses) (the )?{}( cross( over)?)?|over what river does {} cross",
    ),
    Relation(
        "river",
        "site.river",
        asks="what river does {} connect to|of what river is {} a tributary",
        tells="what does {} flow into|WH river ...{}...|in which river {} is transformed"
        "|WH is (an inflow of|the body of (the )?water (of|by)) {}"
        "|the body of water that {} is near is what",
    ),
    Relation(
        "water",
        "site",
        tells="WH (body of water|water body) (was|is) {} next to( him)?|by which body of water is {} located",
    ),
    # Nature, and what is named after something
    Relation(
        "named after",
        "named",
        asks="what is {} named after|{} (is|was) (named|called) (after|for)"
        "|{}, which (is|was) (named|called) (after|for)",
        tells="(who|whom|what|after whom)( is|'s| was) (the )?{}s? named( after| for)?|who named {} for"
        "|the {} (was named for whom|has been named after who)|{}, (named|called) (after|for)"
        "|{} is named for",
        of=("site", "institution", "celestial", "taxon", "ship", "gene"),
    ),
    Relation(
        "planet",
        "celestial.feature",
        tells="(on )?WH (celestial body|heavenly body|planet|moon or planet) (is|can|can you find) {}..."
        "|on WH ...(planet|body) (is|can) {} ...|(what is )?the astronomical body ...{}...",
    ),
    Relation(
        "constellation",
        "celestial.star",
        asks="what constellation (is {} (a part of|located in|part of)|does {} belong to)"
        "|which constellation is {} in|of which constellation is {} a part"
        "|what is the constellation that {} is a part of",
        tells="(to )?WH constellation ...{}...|WH is the (name of the )?constellation ...{}..."
        "|the star {} is (a )?part of (what constellation|the constellation known as what)",
    ),
    Relation(
        "discovery",
        "discovered",
        asks="when was {} (first )?discovered|what year was {} discovered",
        tells="when (was|did|does|'s) ...(discover|discovered|discovery|found)...( {}...)?"
        "|when (was|did|'s|does)( the)? {} (discovered( first| or created)?|found( or made)?|get "
        "discovered|be found or built|find it|discover)"
        "|when was the discovery of {}|WH( is|'s) the (year|full date)... {}( was)?( discovered)?"
        "|the (year|date)... {} was discovered (was )?when|at (which|what) time was {} (discovered|found)"
        "|WH (year|time) was {} (discovered|found)|the {} was discovered in what year"
        "|when did the discovery or creation of {} occur|the date of discovery or the year of {}",
        of=("celestial.star", "taxon", "gene"),
    ),
    Relation(
        "family",
        "taxon",
        asks="which family does {} belong to|which family is {} a part of|what family is {} part of",
        tells="(in )?WH (kind of |sort of )?family (is|does|do|are|belongs)( to)?( the)? {}..."
        "|(WH|who) was the (family of {}|{} family)"
        "|(is )?the genus {} (is )?(belongs|a part|part)... family",
    ),
    Relation(
        "conservation",
        "taxon.species",
        asks="what is the (conservation|endangered|ecological) status of {}",
        tells="what is (an ecological (status|condition)|the status) of {}"
        "|how endangered does the iucn (consider )?{}|how high is the conservation status of {}"
        "|what level is {}'s iucn conservation status|what is the endangered status of the {}",
    ),
    Relation(
        "species",
        "gene",
        asks="what species is {} specific to|which species has the {} gene",
        tells="(for )?WH species is {} specific|which living being can {} be found in",
    ),
)


def template_of(prompt: str, subject: str) -> str | None:
    """The prompt with `{}` in its subject's place; `None` if the subject is not there exactly once, in whole words."""
    parts = re.split(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)
    return "{}".join(parts) if len(parts) == 2 and subject not in parts[0] + parts[1] else None


def relation_of(template: str) -> tuple[str, str] | None:
    """What a template asks for (a family of relations), and the kind of its subject; `None` if that is not clear."""
    row = _row_of(template)
    return (row.family, row.kind) if row else None


def first_of_subject(edits: Sequence[Edit]) -> list[Edit]:
    """Only the first edit of every subject, in the order in which subjects come for the last time."""
    return list({edit.subject or edit.prompt: edit for edit in reversed(edits)}.values())[::-1]


def other_questions(
    edits: Sequence[Edit], templates_from: Sequence[Edit], per_edit: int = 2, seed: int = 0
) -> list[tuple[int, str]]:
    """
    Ask the subjects of edits for something that none of the edits is about.

    Args:
        edits: The edits. One of which it is not clear what it is about is left out, and so are all others of its subject.
        templates_from: Edits whose prompts and rephrasings lend their wording.
        per_edit: How many questions an edit gets at most; they are of different families where possible.
        seed: Of the drawing.

    Returns:
        Pairs of an edit's index and a question.
    """
    wordings: dict[Relation, set[str]] = defaultdict(set)
    for edit in templates_from:
        for template in _templates(edit):
            row = _row_of(template)
            if row and _matches(row.asks, template):
                wordings[row].add(template)

    edited: dict[str, set[str | None]] = defaultdict(set)
    for edit in edits:
        rows = [_row_of(template) for template in _templates(edit)]
        clear = edit.subject and template_of(edit.prompt, edit.subject) and rows[0]
        edited[edit.subject or ""] |= {row.family for row in rows if row} | (set() if clear else {None})

    drawing, questions = random.Random(seed), []
    for index, edit in enumerate(edits):
        template = template_of(edit.prompt, edit.subject) if edit.subject else None
        own = _row_of(template) if template else None
        if own is None or None in edited[edit.subject or ""]:
            continue
        fitting: dict[str, list[str]] = defaultdict(list)
        for row, templates in wordings.items():
            asked = row.of or (row.kind,)
            if row.family not in edited[edit.subject] and any(f"{own.kind}.".startswith(f"{kind}.") for kind in asked):
                fitting[row.family] += templates
        left = {family: drawing.sample(sorted(fitting[family]), len(fitting[family])) for family in sorted(fitting)}
        drawn: list[str] = []
        while len(drawn) < per_edit and any(left.values()):
            round_of = [family for family in left if left[family]]
            for family in drawing.sample(round_of, min(len(round_of), per_edit - len(drawn))):
                drawn.append(left[family].pop())
        questions += [(index, template.replace("{}", edit.subject)) for template in drawn]
    return questions


def _templates(edit: Edit) -> list[str]:
    if not edit.subject:
        return []
    prompts = [edit.prompt, *(prompt for prompt, _ in edit.probes("rephrase"))]
    return [template for prompt in prompts if (template := template_of(prompt, edit.subject))]


@cache
def _row_of(template: str) -> Relation | None:
    return next((row for row in RELATIONS if _matches(row.asks, template) or _matches(row.tells, template)), None)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    for short, long in (("{}", r"\{\}"), ("WH", "(what|which)"), ("...", r"[\w '/,()]*")):
        pattern = pattern.replace(short, long)
    return re.compile(pattern, re.IGNORECASE)


def _matches(pattern: str, template: str) -> bool:
    return bool(pattern) and _compiled(pattern).fullmatch(template.strip().removesuffix("?").rstrip()) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, nargs="+", help="JSON lines with EasyEdit's keys")
    parser.add_argument("--show", type=int, default=20, help="how many questions to show")
    args = parser.parse_args()

    files = {path: read_edits(path) for path in args.data}
    lenders = [edit for edits in files.values() for edit in edits]
    rows: list[tuple[str, str]] = []
    for path, edits in files.items():
        first = set(first_of_subject(edits))
        questions = other_questions(edits, lenders)
        covered = {index for index, _ in questions}
        told = [
            index
            for index, edit in enumerate(edits)
            if edit.subject and (t := template_of(edit.prompt, edit.subject)) and relation_of(t)
        ]
        print(f"{path}: {len(covered)} of {len(edits)} edits covered; {len(told)} have a relation")
        num = len(first & {edits[index] for index in covered})
        print(f"  {num} of {len(first)} subjects' first edits covered; {len(questions)} questions")
        rows += [(edits[index].prompt, question) for index, question in questions]

    kinds: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for edit in lenders:
        for template in _templates(edit):
            if relation := relation_of(template):
                kinds[relation[1]][relation[0]].add(template)
    for kind, families in sorted(kinds.items()):
        print(
            f"{kind}: {sum(map(len, families.values()))} templates, {len(families)} families: {', '.join(sorted(families))}"
        )
    for prompt, question in random.Random(0).sample(rows, min(args.show, len(rows))):
        print(f"{prompt} | {question}")


if __name__ == "__main__":
    main()
