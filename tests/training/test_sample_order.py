from collections import Counter

from longvlm.training.sample_order import plan_samples


def test_every_sample_once_an_epoch() -> None:
    order = plan_samples([5] * 10, [1.0] * 10, epochs=2, batch_size=3, group_lengths=True, seed=0)
    assert Counter(order[:20]) == dict.fromkeys(range(10), 2)
    assert len(set(order[:9])) == len(set(order[9:18])) == 9  # whole batches of an epoch; what is left comes last
    assert order[:9] != order[9:18]
    assert order[20:] == order[:1]  # the last batch is filled up


def test_the_order_is_that_of_its_seed() -> None:
    plans = [plan_samples([5] * 10, [1.0] * 10, epochs=1, batch_size=3, group_lengths=False, seed=s) for s in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


def test_weights_are_how_often_a_sample_is_seen() -> None:
    weights = [2.0] * 50 + [0.5] * 100
    order = plan_samples([1] * 150, weights, epochs=4, batch_size=4, group_lengths=False, seed=0)
    seen = Counter(order)
    assert all(seen[i] == 8 for i in range(50))
    assert all(seen[i] == 2 for i in range(50, 150))


def test_half_an_epoch() -> None:
    order = plan_samples([1] * 10, [1.0] * 10, epochs=1.5, batch_size=2, group_lengths=False, seed=0)
    assert len(order) == 16  # the last batch is filled up


def test_batches_hold_samples_of_like_length() -> None:
    lengths = [i * 37 % 400 for i in range(400)]
    order = plan_samples(lengths, [1.0] * 400, epochs=1, batch_size=4, group_lengths=True, seed=0)
    batches = [[lengths[p] for p in order[i : i + 4]] for i in range(0, 400, 4)]
    assert max(max(batch) - min(batch) for batch in batches) < 30
    firsts = [batch[0] for batch in batches]
    assert firsts != sorted(firsts)  # batches themselves come in random order


def test_samples_fewer_than_a_batch_are_seen_epoch_after_epoch() -> None:
    order = plan_samples(list(range(20)), [1.0] * 20, epochs=3, batch_size=32, group_lengths=True, seed=0)
    assert Counter(order[:60]) == dict.fromkeys(range(20), 3)
    assert set(order[:32]) == set(range(20)) and order[:32] == sorted(order[:32])


def test_the_batch_that_is_not_full_comes_last() -> None:
    order = plan_samples(list(range(103)), [1.0] * 103, epochs=1, batch_size=2, group_lengths=True, seed=0)
    assert sorted(order[:103]) == list(range(103))
    assert order[103:] == order[:1]
    pairs = zip(order[0:102:2], order[1:102:2], strict=True)
    assert sum(abs(a - b) <= 6 for a, b in pairs) >= 50  # the last three are what was left over from groups of 100


def test_batches_of_later_epochs_hold_samples_of_like_length_too() -> None:
    lengths = [i * 37 % 401 for i in range(401)]
    order = plan_samples(lengths, [1.0] * 401, epochs=3, batch_size=4, group_lengths=True, seed=0)
    batches = [[lengths[p] for p in order[i : i + 4]] for i in range(0, 1200, 4)]
    assert max(max(batch) - min(batch) for batch in batches) < 30
