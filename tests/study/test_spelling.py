import torch

from longvlm.study.spelling import spell_bank
from longvlm.training.drawn_blocks import BlockPlan
from longvlm.training.encoder_heads import describe_pose
from longvlm.training.ground_truth import OBJECT_SIZES, describe_names
from longvlm.world.scene import Scene

_COLOURS, _SHAPES = OBJECT_SIZES
# Several objects at a time, none at all, and a last segment of 3 seconds.
PLANS = [*(BlockPlan(seed, 3, 6) for seed in range(20)), BlockPlan(20, 2, 0), BlockPlan(21, 2, 1, short_by_seconds=7.0)]


def _told(scene: Scene, second: int) -> int:
    on = [i for i, event in enumerate(scene.events) if event.start_seconds <= second < event.end_seconds]
    return on[second % len(on)] if on else -1


def test_every_second_is_spelled_out_as_the_world_has_it() -> None:
    bank = spell_bank(PLANS, 128, segment_seconds=10)
    assert bank.local.shape == (64, 10, 128) and bank.layer_globals.shape == (64, 0, 128)
    assert bank.token_frames[5].tolist() == list(range(10))
    assert not bank.local[..., _COLOURS + _SHAPES + 5 :].any()
    overlapping = 0
    for block, plan in enumerate(PLANS):
        scene = plan.scene(10.0)
        rows = slice(bank.first_segment[block], bank.first_segment[block + 1])
        known = (tensor[rows].flatten(0, 1) for tensor in (bank.local, bank.token_events, bank.token_poses))
        for second, (token, event, pose) in enumerate(zip(*known, strict=True)):
            at = min(second, int(scene.duration_seconds) - 1)
            assert int(event) == _told(scene, at)
            overlapping += sum(other.is_on(at) for other in scene.events) > 1
            colour, shape, wanted = _COLOURS - 1, _SHAPES - 1, torch.zeros(5)
            if event >= 0:
                ((colour, shape),) = describe_names([scene.events[int(event)].object]).tolist()
                wanted = torch.tensor(describe_pose(scene.events[int(event)], at))
            assert torch.equal(token[:_COLOURS], torch.eye(_COLOURS)[colour])
            assert torch.equal(token[_COLOURS:][:_SHAPES], torch.eye(_SHAPES)[shape])
            assert torch.equal(token[_COLOURS + _SHAPES :][:5], wanted) and torch.equal(pose, wanted)
    assert overlapping > 20
    assert (bank.token_events[-4:-2] == -1).all() and (bank.token_events[-2:] >= 0).any()
    assert torch.equal(bank._join([1, 20]).visual_tokens, torch.cat([bank.local[3:6], bank.local[60:62]]).flatten(0, 1))
