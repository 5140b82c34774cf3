"""Cross-batch memory: what is in it, what is mined against it, and that it survives a restart."""

import pytest
import torch

from facemetric.errors import ConfigError, DataError
from facemetric.mining import MINERS, CrossBatchMemory


def batch(seed, rows=6):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 3, generator=generator), torch.randint(3, (rows,), generator=generator)


@pytest.mark.parametrize("miner", ["all", "semihard", "hard"])
def test_mines_the_batch_against_itself_and_the_past(miner):
    memory = CrossBatchMemory(100, dim=3, miner=miner)
    past = [batch(s) for s in range(3)]
    for emb, labels in past:
        memory(emb, labels)
    emb, labels = batch(9)
    ours, expected = emb.clone().requires_grad_(), emb.clone().requires_grad_()
    mined = memory(ours, labels, margin=0.5)
    mined.loss.backward()
    everything = torch.cat([expected, *(e for e, _ in past)])
    direct = MINERS[miner](
        everything, torch.cat([labels, *(y for _, y in past)]), margin=0.5, anchors=slice(0, len(labels))
    )
    direct.loss.backward()
    assert mined.loss == direct.loss
    assert mined.valid == direct.valid > 0
    assert torch.equal(ours.grad, expected.grad)


def test_keeps_the_last_rows_in_a_ring():
    memory = CrossBatchMemory(8, dim=3)
    rows = [batch(s) for s in range(4)]
    for emb, labels in rows:
        memory(emb, labels)
    last = torch.cat([e for e, _ in rows])[-8:]
    stored = memory.embeddings[(memory.cursor + torch.arange(8)) % 8]
    assert torch.equal(stored, last)
    emb, labels = batch(7, rows=20)
    memory.store(emb, labels)
    assert torch.equal(memory.embeddings[(memory.cursor + torch.arange(8)) % 8], emb[-8:])
    assert torch.equal(memory.labels[(memory.cursor + torch.arange(8)) % 8], labels[-8:])


def test_state_dict_brings_it_back():
    memory, restored = CrossBatchMemory(10, dim=3, miner="all"), CrossBatchMemory(10, dim=3, miner="all")
    for s in range(3):
        memory(*batch(s))
    restored.load_state_dict(memory.state_dict())
    for s in range(3, 6):
        assert memory(*batch(s)).loss == restored(*batch(s)).loss


def test_eval_does_not_store():
    memory = CrossBatchMemory(50, dim=3, miner="hard")
    emb, labels = batch(0)
    assert memory(emb, labels).loss == MINERS["hard"](emb, labels).loss
    memory.eval()
    before = memory.embeddings.clone()
    assert memory(*batch(2)).loss != MINERS["hard"](*batch(2)).loss
    assert torch.equal(before, memory.embeddings)
    assert memory.filled == 6


def test_a_miner_that_draws_takes_another_seed_each_batch():
    memory, (emb, labels) = CrossBatchMemory(4, dim=3, miner="distance-weighted", seed=7), batch(1, rows=40)
    first, second = (memory.eval()(emb, labels) for _ in range(2))
    assert first.loss == second.loss == MINERS["distance-weighted"](emb, labels, seed=7).loss
    memory.train()(emb, labels)
    restored = CrossBatchMemory(4, dim=3, miner="distance-weighted", seed=7)
    restored.load_state_dict(memory.state_dict())
    everything = torch.cat([emb, memory.embeddings]), torch.cat([labels, memory.labels])
    expected = MINERS["distance-weighted"](*everything, seed=8, anchors=slice(0, 40)).loss
    assert memory.eval()(emb, labels).loss == restored.eval()(emb, labels).loss == expected
    unnamed = CrossBatchMemory(4, dim=3, miner="distance-weighted")  # its seed is 0
    assert unnamed(emb, labels).loss == MINERS["distance-weighted"](emb, labels, seed=0).loss
    other = MINERS["distance-weighted"](*everything, seed=3, anchors=slice(0, 40)).loss
    assert memory(emb, labels, seed=3).loss == other != expected


def test_half_precision_meets_a_float32_memory():
    memory = CrossBatchMemory(10, dim=3, miner="all")
    memory(*batch(0))
    emb, labels = batch(1)
    rows = emb.bfloat16().requires_grad_()
    memory(rows, labels).loss.backward()
    assert rows.grad.dtype == torch.bfloat16
    assert torch.isfinite(rows.grad).all()


def test_errors():
    memory = CrossBatchMemory(10, dim=3)
    with pytest.raises(DataError, match=r"\(B, 3\)"):
        memory(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(DataError, match=r"\.long\(\)"):
        memory(torch.zeros(4, 3), torch.zeros(4))
    with pytest.raises(ConfigError, match="at least 1"):
        CrossBatchMemory(0, dim=3)
    with pytest.raises(ConfigError, match="did you mean"):
        CrossBatchMemory(5, dim=3, miner="semihart")
