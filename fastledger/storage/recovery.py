"""Recovery of a log: finds its end and tells a torn tail from lost data (SPEC-LOG-8 to SPEC-LOG-10)."""

from dataclasses import dataclass

from fastledger.errors import CorruptionError
from fastledger.storage.files import READ_CHUNK_BYTES
from fastledger.storage.frames import (
    KIND_DATA,
    KIND_SEAL,
    SEGMENT_HEADER_BYTES,
    Frame,
    FramePlace,
    FrameRef,
    find_frames,
)
from fastledger.storage.head import EMPTY, HeadState, LogPosition
from fastledger.storage.segments import SegmentFiles


@dataclass(slots=True)
class Recovered:
    """The end of the log as recovery found it, and how much of it was known to be durable before this opening."""

    last: LogPosition
    last_checksum: int
    link: int  # what the next frame links to: the checksum of the frame or segment header before it
    end: FramePlace
    sealed: bool  # the last segment is full and has no successor yet
    known: FramePlace  # everything before it was known to be durable
    torn_end: int  # offset behind the torn tail in the last segment; equal to end.offset if there is none


def recover(segments: SegmentFiles, head: HeadState | None, scan_from: FrameRef | None) -> Recovered:
    """Reads the log from the last frame that is known to be durable, and returns its end. Changes nothing on disk.

    ``head`` is None where HEAD is damaged; the scan then begins at ``scan_from``, or at the oldest segment. Raises
    CorruptionError where a frame that was durable is damaged or missing (SPEC-LOG-10).
    """
    state = _starting_point(segments, head, scan_from)
    last_segment = segments.numbers()[-1]
    while True:
        frame = _whole_frame(segments, state)
        if frame is None:
            break
        state.end, state.link = frame.ref.end, frame.checksum
        if frame.kind == KIND_DATA:
            state.last = LogPosition(frame.ref, frame.height, frame.block_id)
            state.last_checksum = frame.checksum
        elif frame.ref.segment == last_segment:
            state.sealed = True
            break
        else:
            state.end, state.link = segments.after_seal(frame)
            state.known = state.end  # a segment is created only when the one before it is synced
    if state.end.segment != last_segment:
        raise _damage(segments, state.end, "frame is damaged, and later segments exist")
    state.torn_end = _torn_end(segments, state)
    return state


def _starting_point(segments: SegmentFiles, head: HeadState | None, scan_from: FrameRef | None) -> Recovered:
    first = segments.first
    # What lies before the oldest segment was pruned, and so durable long before what is still here.
    if head is not None and head.position.ref is not None and head.position.ref.segment >= first:
        return _from_frame(segments, head.position.ref, head.frame_checksum)
    if head is None and scan_from is not None and scan_from.segment >= first:
        return _from_frame(segments, scan_from, None)
    place = FramePlace(first, SEGMENT_HEADER_BYTES)
    return Recovered(EMPTY, 0, segments.header(first).checksum, place, False, place, place.offset)


def _from_frame(segments: SegmentFiles, ref: FrameRef, checksum: int | None) -> Recovered:
    """Returns the state behind a frame that is known to have been durable, and must therefore be whole."""
    place = FramePlace(ref.segment, ref.offset)
    frame = segments.frame_at(place, None)
    if frame is None or frame.ref != ref or checksum not in (None, frame.checksum) or frame.kind == KIND_SEAL:
        raise _damage(segments, place, "a frame that was durable is damaged or missing")
    segments.payload(frame)
    last = LogPosition(frame.ref, frame.height, frame.block_id)
    return Recovered(last, frame.checksum, frame.checksum, ref.end, False, ref.end, ref.end.offset)


def _whole_frame(segments: SegmentFiles, state: Recovered) -> Frame | None:
    frame = segments.frame_at(state.end, state.link)
    if frame is None:
        return None
    try:
        segments.payload(frame)
    except CorruptionError:
        return None
    return frame


def _torn_end(segments: SegmentFiles, state: Recovered) -> int:
    """Returns the end of what an interrupted, never acknowledged write left.

    Raises CorruptionError if it had been durable.
    """
    header = segments.header(state.end.segment)
    with segments.lease(state.end.segment) as file:
        torn_end = segments.files.end_of_data(file, state.end.offset, header.segment_bytes)
        if state.sealed or torn_end == state.end.offset:
            return state.end.offset
        later = find_frames(segments.files, file, header, state.end.offset)
    if any(frame.durable > state.end for frame in later):
        raise _damage(segments, state.end, "a frame that was durable is damaged")
    return torn_end


def repair(segments: SegmentFiles, state: Recovered) -> None:
    """Makes what ``recover`` found durable: zeroes the torn tail and writes the frames behind ``known`` again.

    A sync alone would not do. After a failed sync the kernel may hold pages that it counts as clean and that never
    reached the device.
    """
    segment, offset = state.end
    start = state.known.offset if state.known.segment == segment else SEGMENT_HEADER_BYTES
    if start == offset == state.torn_end:
        return
    files = segments.files
    with segments.lease(segment, writable=True) as file:
        while start < offset:
            data = files.read(file, min(READ_CHUNK_BYTES, offset - start), start)
            start += files.write(file, [data], start)
        files.write_zeros(file, offset, state.torn_end - offset)
        files.fdatasync(file)


def _damage(segments: SegmentFiles, place: FramePlace, message: str) -> CorruptionError:
    return CorruptionError(message, path=str(segments.path_of(place.segment)), offset=place.offset)
