from collections import Counter

from lemoe_hf.data import reference_prompts, reference_relations


def test_reference_prompts_are_many_and_different():
    prompts = reference_prompts()
    assert len(prompts) >= 150
    assert len(set(prompts)) == len(prompts)
    assert all(prompt == prompt.strip() != "" for prompt in prompts)


def test_relations_are_asked_for_in_many_ways():
    prompts = reference_relations()
    texts = [prompt.text for prompt in prompts]
    assert all(prompt.text.count(prompt.subject) == 1 for prompt in prompts)
    assert len(set(texts)) == len(texts) > 8000
    assert not any("{" in text for text in texts)
    ways = Counter(prompt.relation for prompt in prompts)
    assert sorted(ways) == list(range(len(ways)))
    assert min(ways.values()) >= 6
    assert all(
        len({prompt.kind for prompt in prompts if prompt.relation == relation}) == 1 for relation in (0, 100, 400)
    )
    assert 0.4 < sum(text.endswith("?") for text in texts) / len(texts) < 0.6
