from __future__ import annotations

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from facts import FACTS, UNRELATED


def test_hf(base_folder, adapter_folder):
    lm = HFLM(pretrained=str(base_folder), peft=str(adapter_folder), device="cpu", batch_size=2)
    base = HFLM(pretrained=str(base_folder), device="cpu", batch_size=2)
    def score(lm, pairs):
        return lm.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)], disable_tqdm=True)
    facts = [(f.prompt, " "+f.target_new) for f in FACTS[:2]]
    print(score(lm, facts), score(base, facts))
