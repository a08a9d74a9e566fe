from lemoe_hf.data import reference_prompts


def test_reference_prompts_are_many_and_different():
    prompts = reference_prompts()
    assert len(prompts) >= 150
    assert len(set(prompts)) == len(prompts)
    assert all(prompt == prompt.strip() != "" for prompt in prompts)
