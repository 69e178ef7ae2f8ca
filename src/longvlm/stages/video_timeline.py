"""When each frame of a video stream is presented: found by demuxing alone, a few bytes a frame."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from av.packet import Packet

_DIGESTED_BYTES_PER_KEYFRAME = 4096
_MOST_FALLBACK_FRAMES = 25  # of times of decoding, which should not fall back at all


@dataclass(frozen=True)
class Timeline:
    """The presented frames of a stream and its keyframes, in units of the stream's time base.

    pts (N,) int64, ascending and distinct; keyframe_pts and keyframe_dts (at least one), ascending, those
    included that an edit list hides; end_pts: the end of the last frame; end_byte: where in the file the
    last packet ends; in_decoding_order: the timestamps ascend from packet to packet; starts_anew: they fall back
    somewhere, as where recordings were joined byte by byte; has_cuts: an edit list leaves something out between;
    cut_short: the last packet was damaged and is left out; digest: a hash of times and keyframes.
    """

    pts: np.ndarray
    keyframe_pts: np.ndarray
    keyframe_dts: np.ndarray
    end_pts: int
    end_byte: int
    in_decoding_order: bool
    starts_anew: bool
    has_cuts: bool
    cut_short: bool
    digest: str

    @property
    def keyframe_positions(self) -> np.ndarray:
        """Positions in `pts` of the presented keyframes."""
        return np.flatnonzero(np.isin(self.pts, self.keyframe_pts))

    @property
    def frame_pts(self) -> int:
        """The usual distance of two frames; at least 1."""
        return max(1, int(np.median(np.diff(self.pts)))) if len(self.pts) > 1 else 1

    def begun_with(self, first_pts: int) -> Timeline:
        """Without what comes before the first frame that decodes, if that is the first keyframe: where a recording
        begins amid a group of pictures, players show nothing of that.
        """
        if first_pts > self.keyframe_pts[0]:  # the beginning is damaged, and keeps its times
            return self
        return dataclasses.replace(self, pts=self.pts[self.pts >= first_pts])

    def keyframe_before(self, pts: int) -> int:
        """Index of the last keyframe presented at or before `pts`; the first one if there is none."""
        return max(0, int(np.searchsorted(self.keyframe_pts, pts, side="right")) - 1)


def scan_timeline(packets: Iterable[Packet], *, stream_index: int, one_frame_pts: int) -> Timeline | None:
    """Build the timeline of a stream's packets; None where no frame is presented.

    Packets that an edit list hides are decoded but not presented, and so not counted; of other streams' packets
    only the place counts. `one_frame_pts` is the length of a frame where the packets don't tell it and there is
    only one.
    """
    pts, keyframes_pts, keyframes_dts = array("q"), array("q"), array("q")
    digest = hashlib.sha256()
    end_pts, end_byte, last_is_corrupt = 0, 0, False
    latest_dts, most_fallback = -math.inf, _MOST_FALLBACK_FRAMES * one_frame_pts
    starts_anew = has_cuts = False
    for packet in packets:
        end_byte = max(end_byte, (packet.pos or 0) + packet.size)
        if packet.pts is None or packet.stream_index != stream_index:
            continue
        if packet.is_keyframe:
            keyframes_pts.append(packet.pts)
            keyframes_dts.append(packet.pts if packet.dts is None else packet.dts)
            digest.update(bytes(packet)[:_DIGESTED_BYTES_PER_KEYFRAME])
        if packet.is_discard:  # those that a cut hides are dated back from where it ends
            has_cuts = has_cuts or (packet.dts is not None and packet.dts < latest_dts)
            continue
        if packet.dts is not None:
            starts_anew = starts_anew or packet.dts < latest_dts - most_fallback
            latest_dts = max(latest_dts, packet.dts)
        pts.append(packet.pts)
        last_is_corrupt = packet.is_corrupt
        if not last_is_corrupt:
            end_pts = max(end_pts, packet.pts + (packet.duration or 0))
    if last_is_corrupt:
        pts.pop()
    if not pts:
        return None
    in_packet_order = np.frombuffer(pts, dtype=np.int64)
    ordered = np.unique(in_packet_order)
    digest.update(ordered.tobytes())
    if end_pts <= ordered[-1]:
        end_pts = int(ordered[-1]) + (int(np.median(np.diff(ordered))) if len(ordered) > 1 else one_frame_pts)
    order = np.argsort(keyframes_pts or [ordered[0]], kind="stable")
    return Timeline(
        pts=ordered,
        keyframe_pts=np.array(keyframes_pts or [ordered[0]], dtype=np.int64)[order],
        keyframe_dts=np.array(keyframes_dts or [ordered[0]], dtype=np.int64)[order],
        end_pts=end_pts,
        end_byte=end_byte,
        in_decoding_order=np.array_equal(ordered, in_packet_order),
        starts_anew=starts_anew,
        has_cuts=has_cuts,
        cut_short=last_is_corrupt,
        digest=digest.hexdigest(),
    )
