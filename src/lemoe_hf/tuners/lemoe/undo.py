"""Take one edit back, exactly."""

from __future__ import annotations

import torch

from .layer import LEMoELayer
from .ledger import entries_of, lines_of
from .sizes import write_sizes


def remove_edit(layers: list[LEMoELayer], adapter_name: str, edit: int) -> dict:
    """
    Take back an edit's anchors, its keys, its line in the ledger and, if no other edit uses it, its expert.

    Args:
        layers (`list` of [`LEMoELayer`]): Those of the adapter, the one with the anchors first.
        adapter_name (`str`): The adapter.
        edit (`int`): Its identifier.

    Returns:
        The ledger's entry of it.

    Raises:
        KeyError: If the ledger has no such edit.
    """
    lead = layers[0]
    ledger, anchors, bank = (kind[adapter_name] for kind in (lead.lemoe_ledger, lead.lemoe_anchors, lead.lemoe_bank))
    entries = entries_of(ledger.text)
    removed = next((entry for entry in entries if entry["id"] == edit), None)
    if removed is None:
        raise KeyError(f"There is no edit {edit}; the ledger has {[entry['id'] for entry in entries][-20:]}.")
    entries.remove(removed)
    anchors.remove(edit)
    lead.lemoe_targets[adapter_name].remove(edit)
    if adapter_name in lead.lemoe_relations:
        lead.lemoe_relations[adapter_name].remove(edit)
    expert = removed["expert"]
    is_committed = expert < len(bank)
    has_own_keys = lead.configs[adapter_name].routing == "kv_anchor"  # and these name experts by their place
    if is_committed and not has_own_keys and not (anchors.expert == expert).any():
        for layer in layers:
            layer.remove_expert(adapter_name, expert)
        anchors.expert = torch.where(anchors.expert > expert, anchors.expert - 1, anchors.expert)
        for entry in entries:
            entry["expert"] -= entry["expert"] > expert
    if is_committed and has_own_keys and not (anchors.expert == expert).any():
        lead.lemoe_router_bank[adapter_name].withdraw(expert)
    if not is_committed and not lead.has_open_edits(adapter_name):
        for layer in layers:
            layer.open_experts(adapter_name, 1)  # the next edit must not start from what was taken back
        if has_own_keys:
            lead.open_keys(adapter_name, 1)
            lead.lemoe_router_bank[adapter_name].forget(expert)
    ledger.text = lines_of(entries)
    write_sizes(lead, adapter_name)
    return removed
