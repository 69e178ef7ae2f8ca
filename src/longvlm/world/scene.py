"""What happens in a generated video: coloured shapes appear, act and leave, on backgrounds that distract.

A scene is pure data, derived from its seed alone. Positions are fractions of the picture's width and height,
sizes are fractions of its short side, so one scene can be drawn at any size and aspect ratio.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

from longvlm.errors import LongVLMError

Rgb = tuple[int, int, int]

COLOURS: dict[str, Rgb] = {
    "red": (220, 25, 30),
    "orange": (250, 130, 10),
    "yellow": (245, 225, 35),
    "green": (25, 165, 45),
    "cyan": (30, 210, 215),
    "blue": (35, 65, 230),
    "pink": (245, 95, 195),
    "white": (242, 242, 242),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "diamond", "crescent", "arrow")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
ACTIONS = ("move left", "move right", "move up", "move down", "grow", "shrink", "spin", "blink", "stay")
# A turned circle or ring looks the same, and a turned square could be taken for a diamond.
SHAPES_THAT_DO_NOT_SPIN = ("circle", "ring", "square")
TEXTURES = ("clouds", "stripes", "checks", "grain")

MIN_EVENT_SECONDS = 4.0
MAX_EVENT_SECONDS = 24.0
MIN_SECONDS_PER_EVENT = 4.75  # the shortest event and a gap after it
MIN_DURATION_SECONDS = 2 * MIN_SECONDS_PER_EVENT
MAX_EVENTS = 12
MIN_SIZE, MAX_SIZE = 0.15, 0.45
OVERLAP_SHARE = 0.35  # of the scenes with two events or more
BLINK_SECONDS = 3.2  # about one cycle: one frame a second still catches an object that is gone
BLINK_SHARE_VISIBLE = 0.6  # of a cycle


class Pose(NamedTuple):
    """An object at one moment, in fractions of the picture's width, height and (size) short side."""

    x: float
    y: float
    size: float
    angle_radians: float
    visible: bool


@dataclass(frozen=True)
class Event:
    """One object's appearance: it is on for start_seconds <= t < end_seconds and acts all that time."""

    colour: str
    shape: str
    action: str
    start_seconds: float
    end_seconds: float
    start_x: float
    start_y: float
    end_x: float
    end_y: float
    size: float
    end_size: float
    angle_radians: float = 0.0
    radians_per_second: float = 0.0
    rgb: Rgb = (0, 0, 0)

    @property
    def object(self) -> str:
        return f"{self.colour} {self.shape}"

    @property
    def duration_seconds(self) -> float:
        return self.end_seconds - self.start_seconds

    @property
    def direction(self) -> str | None:
        """left, right, up or down on the screen, or None for an object that does not move."""
        return self.action.removeprefix("move ") if self.action.startswith("move ") else None

    def is_on(self, time_seconds: float) -> bool:
        return self.start_seconds <= time_seconds < self.end_seconds

    def overlaps(self, other: Event) -> bool:
        return self.start_seconds < other.end_seconds and other.start_seconds < self.end_seconds

    def pose(self, time_seconds: float) -> Pose:
        elapsed = time_seconds - self.start_seconds
        done = min(max(elapsed / self.duration_seconds, 0.0), 1.0)
        visible = self.is_on(time_seconds) and (self.action != "blink" or self._blink_is_on(done))
        return Pose(
            self.start_x + done * (self.end_x - self.start_x),
            self.start_y + done * (self.end_y - self.start_y),
            self.size + done * (self.end_size - self.size),
            self.angle_radians + elapsed * self.radians_per_second,
            visible,
        )

    def _blink_is_on(self, done: float) -> bool:
        """Whole cycles, then one more visible part: it is seen at the first moment and at the last."""
        cycles = max(1, round(self.duration_seconds / BLINK_SECONDS - BLINK_SHARE_VISIBLE)) + BLINK_SHARE_VISIBLE
        return (done * cycles) % 1.0 < BLINK_SHARE_VISIBLE


@dataclass(frozen=True)
class Patch:
    """A soft-edged, dull area that drifts over the background: something that moves and is no object."""

    start_seconds: float
    end_seconds: float
    start_x: float
    start_y: float
    end_x: float
    end_y: float
    half_width: float
    half_height: float
    rgb: Rgb
    opacity: float


@dataclass(frozen=True)
class Flash:
    """A moment when the whole picture turns brighter or darker by `gain`."""

    start_seconds: float
    end_seconds: float
    gain: float


@dataclass(frozen=True)
class Background:
    """The ground between two cuts: a dull texture under drifting light, seen by a moving camera."""

    start_seconds: float
    end_seconds: float
    seed: int
    texture: str
    dark_rgb: Rgb
    light_rgb: Rgb
    cells: float  # texture cells along the short side
    pan_seconds: tuple[float, float]  # periods of the camera's swing along x and y
    light_seconds: float  # period of the light's drift
    light_strength: float
    light_waves: tuple[float, float]  # waves of light across the width and the height
    tint: tuple[float, float, float]
    phase: float
    patches: tuple[Patch, ...]
    flashes: tuple[Flash, ...]


@dataclass(frozen=True)
class Scene:
    """A whole video: events sorted by their start, and backgrounds that follow one another without gaps."""

    seed: int
    duration_seconds: float
    events: tuple[Event, ...]
    backgrounds: tuple[Background, ...]
    noise_levels: float  # standard deviation of the sensor's noise, in grey levels of 255
    shake: float  # amplitude of the objects' tremble, in fractions of the short side

    def third_of(self, event: Event) -> int | None:
        """0, 1 or 2 for an event that lies whole in that third of the video, else None."""
        third = self.duration_seconds / 3
        part = min(int(event.start_seconds // third), 2)
        return part if event.end_seconds <= (part + 1) * third + 1e-6 else None

    def background_at(self, time_seconds: float) -> Background:
        starts = [background.start_seconds for background in self.backgrounds]
        return self.backgrounds[max(0, bisect_right(starts, time_seconds) - 1)]


def max_events(duration_seconds: float) -> int:
    """How many events fit a video of this duration."""
    return min(MAX_EVENTS, int(duration_seconds / MIN_SECONDS_PER_EVENT))


def actions_of(shape: str) -> tuple[str, ...]:
    """What this shape may do."""
    return tuple(action for action in ACTIONS if action != "spin" or shape not in SHAPES_THAT_DO_NOT_SPIN)


def make_scene(seed: int, duration_seconds: float, num_events: int | None = None) -> Scene:
    """The one scene of this seed and duration; it has 2 to 12 events unless `num_events` says how many."""
    most = max_events(duration_seconds) if math.isfinite(duration_seconds) else 0
    if most < (2 if num_events is None else 1):
        raise LongVLMError(f"The duration is {duration_seconds:g} s; a scene needs {MIN_DURATION_SECONDS:g} s or more.")
    if num_events is not None and not 1 <= num_events <= most:
        raise LongVLMError(f"num_events is {num_events}; {duration_seconds:g} s have room for 1 to {most}.")
    rng = random.Random(f"longvlm scene {seed} {duration_seconds:.6f} {num_events}")
    spans = draw_spans(rng, duration_seconds, num_events)
    count = len(spans)
    objects = rng.sample([(colour, shape) for colour in COLOURS for shape in SHAPES], count)
    events: list[Event] = []
    for (start, end), (colour, shape) in zip(spans, objects, strict=True):
        events.append(_place_event(rng, colour, shape, start, end, events))
    return Scene(
        seed=seed,
        duration_seconds=duration_seconds,
        events=tuple(events),
        backgrounds=_make_backgrounds(rng, duration_seconds),
        noise_levels=rng.choice((1.5, 3.0, 5.0, 7.0)),
        shake=rng.choice((0.0, rng.uniform(0.002, 0.008))),
    )


def _log_uniform(rng: random.Random, low: float, high: float) -> float:
    return low * (high / low) ** rng.random()


def draw_spans(rng: random.Random, duration_seconds: float, num_events: int | None = None) -> list[tuple[float, float]]:
    """Start and end of a scene's events in order of their starts; in some scenes neighbours overlap."""
    most = max_events(duration_seconds)
    count = num_events if num_events is not None else rng.randint(min(2, most), most)
    longest = min(max(0.85 * duration_seconds / count, MIN_EVENT_SECONDS), MAX_EVENT_SECONDS)
    lengths = [_log_uniform(rng, MIN_EVENT_SECONDS, longest) for _ in range(count)]
    free = duration_seconds - sum(lengths)
    least_gap = min(0.75, 0.6 * free / (count + 1))
    weights = [rng.expovariate(1.0) for _ in range(count + 1)]
    scale = (free - least_gap * (count + 1)) / sum(weights)
    spans, now = [], 0.0
    for length, weight in zip(lengths, weights[:-1], strict=True):
        now += least_gap + scale * weight
        spans.append((now, now + length))
        now += length
    return _overlapped(rng, spans) if count > 1 and rng.random() < OVERLAP_SHARE else spans


def _overlapped(rng: random.Random, spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same spans, but some begin while the one before lasts; never more than two are on together."""
    spans = list(spans)
    pairs = list(range(rng.randrange(min(2, len(spans) - 1)), len(spans) - 1, 2))
    for i in rng.sample(pairs, rng.randint(1, len(pairs))):
        (start, end), (next_start, next_end) = spans[i], spans[i + 1]
        earlier_start = start + rng.uniform(0.3, 0.65) * (end - start)
        spans[i + 1] = (earlier_start, max(earlier_start + next_end - next_start, end + 1.0))
    return spans


def _place_event(rng: random.Random, colour: str, shape: str, start: float, end: float, earlier: list[Event]) -> Event:
    """The proposal whose object keeps best clear of those on screen at the same time."""
    neighbours = [event for event in earlier if event.end_seconds > start]
    action = rng.choice(actions_of(shape))
    rgb = tuple(min(255, max(0, level + rng.randint(-10, 10))) for level in COLOURS[colour])
    best, best_clearance = None, -math.inf
    for _ in range(60):
        event = _propose_event(rng, colour, shape, action, start, end, (rgb[0], rgb[1], rgb[2]))
        clearance = min((_clearance(event, other) for other in neighbours), default=math.inf)
        if clearance > best_clearance:
            best, best_clearance = event, clearance
        if best_clearance >= 1.0:
            break
    assert best is not None
    return best


def _propose_event(
    rng: random.Random, colour: str, shape: str, action: str, start: float, end: float, rgb: Rgb
) -> Event:
    size = end_size = rng.uniform(MIN_SIZE, MAX_SIZE)
    direction = action.removeprefix("move ")
    if direction in DIRECTIONS:
        size = end_size = rng.uniform(MIN_SIZE, 0.36)  # leaves room to travel
    elif action in ("grow", "shrink"):
        size, end_size = rng.uniform(MIN_SIZE, 0.20), rng.uniform(0.36, MAX_SIZE)
        if action == "shrink":
            size, end_size = end_size, size
    edge = 0.53 * max(size, end_size) + 0.01
    start_x, start_y = rng.uniform(edge, 1 - edge), rng.uniform(edge, 1 - edge)
    end_x, end_y = start_x, start_y
    if direction in DIRECTIONS:
        near, far = rng.uniform(edge, edge + 0.1), rng.uniform(1 - edge - 0.1, 1 - edge)
        step_x, step_y = DIRECTIONS[direction]
        if step_x:
            start_x, end_x = (near, far) if step_x > 0 else (far, near)
        else:
            start_y, end_y = (near, far) if step_y > 0 else (far, near)
    turns_per_second = rng.choice((-1, 1)) * rng.uniform(0.08, 0.14) if action == "spin" else 0.0
    return Event(
        colour=colour,
        shape=shape,
        action=action,
        start_seconds=start,
        end_seconds=end,
        start_x=start_x,
        start_y=start_y,
        end_x=end_x,
        end_y=end_y,
        size=size,
        end_size=end_size,
        angle_radians=rng.uniform(-0.12, 0.12),
        radians_per_second=turns_per_second * 2 * math.pi,
        rgb=rgb,
    )


def _clearance(a: Event, b: Event) -> float:
    """The least distance of two objects while both are on, over the sum of their radii.

    In a square picture, which is the worst case: in others one axis is longer than the short side.
    """
    start, end = max(a.start_seconds, b.start_seconds), min(a.end_seconds, b.end_seconds)
    least = math.inf
    for i in range(13):
        time_seconds = start + (end - start) * i / 12
        one, other = a.pose(time_seconds), b.pose(time_seconds)
        distance = math.hypot(one.x - other.x, one.y - other.y)
        least = min(least, 2 * distance / (one.size + other.size))
    return least


def _dull_rgb(rng: random.Random, low: float, high: float) -> Rgb:
    """A greyish colour whose brightness lies between `low` and `high` of 255."""
    grey, spread = rng.uniform(low, high), 0.22
    red, green, blue = (round(grey * (1 + rng.uniform(-spread, spread))) for _ in range(3))
    return red, green, blue


def _make_backgrounds(rng: random.Random, duration_seconds: float) -> tuple[Background, ...]:
    """Cuts every 8 to 60 seconds, or none at all in a quarter of the scenes."""
    no_cuts = rng.random() < 0.25
    backgrounds, now = [], 0.0
    while now < duration_seconds:
        end = now + _log_uniform(rng, 8.0, 60.0)
        if no_cuts or end > duration_seconds - 2.0:
            end = duration_seconds
        backgrounds.append(_make_background(rng, now, end))
        now = end
    return tuple(backgrounds)


def _make_background(rng: random.Random, start: float, end: float) -> Background:
    return Background(
        start_seconds=start,
        end_seconds=end,
        seed=rng.getrandbits(31),
        texture=rng.choice(TEXTURES),
        dark_rgb=_dull_rgb(rng, 35, 85),
        light_rgb=_dull_rgb(rng, 95, 165),
        cells=_log_uniform(rng, 2.0, 7.0),
        pan_seconds=(rng.uniform(9, 40), rng.uniform(9, 40)),
        light_seconds=rng.uniform(8, 40),
        light_strength=rng.uniform(0.05, 0.22),
        light_waves=(rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8)),
        tint=(rng.uniform(0.93, 1.06), 1.0, rng.uniform(0.93, 1.06)),
        phase=rng.uniform(0, 2 * math.pi),
        patches=_make_patches(rng, start, end),
        flashes=_make_flashes(rng, start, end),
    )


def _make_patches(rng: random.Random, start: float, end: float) -> tuple[Patch, ...]:
    patches, now = [], start + rng.uniform(-5, 10)
    while now < end - 2:
        life = rng.uniform(4, 20)
        patches.append(
            Patch(
                start_seconds=now,
                end_seconds=now + life,
                start_x=rng.uniform(-0.1, 1.1),
                start_y=rng.uniform(-0.1, 1.1),
                end_x=rng.uniform(-0.1, 1.1),
                end_y=rng.uniform(-0.1, 1.1),
                half_width=rng.uniform(0.08, 0.3),
                half_height=rng.uniform(0.08, 0.3),
                rgb=_dull_rgb(rng, 30, 190),
                opacity=rng.uniform(0.3, 0.75),
            )
        )
        now += rng.uniform(3, 25)
    return tuple(patches)


def _make_flashes(rng: random.Random, start: float, end: float) -> tuple[Flash, ...]:
    flashes, now = [], start + rng.expovariate(1 / 25)
    while now < end - 1:
        gain = rng.choice((rng.uniform(1.25, 1.6), rng.uniform(0.5, 0.75)))
        flashes.append(Flash(now, now + rng.uniform(0.15, 0.6), gain))
        now += 1 + rng.expovariate(1 / 25)
    return tuple(flashes)
