"""What may be opened as a video, and how: white-lists of formats and protocols, and errors in plain words."""

from __future__ import annotations

import os
import re
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from longvlm.errors import LongVLMError

if TYPE_CHECKING:
    from av.container import InputContainer

_Result = TypeVar("_Result")

INDEX_SUFFIX = ".longvlm"  # VideoIndex.SUFFIX, known without its heavy imports
NETWORK_TIMEOUT_SECONDS = 15.0

_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")  # controls, surrogates, line and paragraph separators

# FFmpeg's names of the containers that hold their own pictures and refer to nothing outside.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,gif,apng,ogg,asf,mxf,nut,dv,ivf"
_REFERRING_FORMATS = "hls,dash,concat"
_PROTOCOLS = {
    "file": "file",
    "http": "http,https,httpproxy,tcp,tls",
    "https": "http,https,httpproxy,tcp,tls",
    "rtsp": "rtsp,rtp,rtcp,udp,tcp",
    "rtsps": "rtsp,rtp,rtcp,srtp,udp,tcp,tls",
}
# How the text of a playlist starts: HLS, concat, DASH and SDP.
_PLAYLIST = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:#EXTM3U|ffconcat|<MPD|<\?xml|v=0|\[playlist\]|file[ :])", re.IGNORECASE
)


def source_scheme(source: str) -> str:
    """`file`, `http`, `https`, `rtsp` or `rtsps`. Raises LongVLMError for any other protocol."""
    match = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", source)
    scheme = match.group(1).lower() if match else "file"
    if scheme not in _PROTOCOLS:
        raise LongVLMError(
            f"Can't open {display_name(source)}: the protocol {scheme} is not accepted; "
            "give a local file, or an http, https or rtsp address."
        )
    return scheme


def local_path(source: str) -> Path:
    """The path of a local source, given plainly or as a file:// address."""
    path = Path(_path_of_address(source) if source.lower().startswith("file://") else source)
    try:
        return path.expanduser()
    except RuntimeError:  # a name that begins with ~ and is no user's
        return path


def is_index(source: str | Path) -> bool:
    """Whether `source` names a local index; whatever an address ends in, it is taken for a video."""
    return source_scheme(str(source)) == "file" and local_path(str(source)).suffix == INDEX_SUFFIX


def display_name(source: str) -> str:
    """The source as it may be shown and stored: the file's name, or the address without its secrets.

    User, password and query are left out: any of them may be a key to the place.
    """
    if "://" not in source:
        return printable(Path(source).name or source)
    parts = split_address(source)
    if parts.scheme.lower() == "file":
        return printable(Path(unquote(parts.path)).name)
    netloc = parts.netloc.rpartition("@")[2]
    return printable(parts._replace(netloc=netloc, query="", fragment="").geturl())


def display_source(source: str) -> str:
    """A path as it was given, or an address without its secrets."""
    return display_name(source) if "://" in source else source


def split_address(address: str) -> SplitResult:
    """Its parts. Raises LongVLMError, without the secrets in it, for a malformed one."""
    try:
        return urlsplit(address)
    except ValueError as error:
        shown = printable(re.sub(r"[?#].*", "", address).rpartition("@")[2])
        raise LongVLMError(f"The address {shown} is malformed: {error}. Check its host.") from error


def printable(text: object) -> str:
    """Text with a � for each control character and each byte of a file's name that is no UTF-8."""
    return "".join("�" if unicodedata.category(c) in _UNPRINTABLE else c for c in str(text))


@contextmanager
def naming_errors_of(path: Path) -> Iterator[None]:
    """Raise what the system refuses about a file as a LongVLMError that names it."""
    try:
        yield
    except OSError as error:
        raise LongVLMError(
            f"{printable(path)} can't be read: {(error.strerror or str(error)).lower()}. "
            "Check its name and the permissions of the file and its folders."
        ) from error


def _path_of_address(source: str) -> str:
    from urllib.request import url2pathname  # which brings http and ssl, and is seldom needed

    return url2pathname(split_address(source).path)


def kind_of_path(path: Path) -> Literal["file", "folder", "other", "missing"]:
    """What lies at a path. Raises LongVLMError where the system doesn't tell."""
    with naming_errors_of(path):
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no file can have such a name
            return "missing"
    return "file" if stat.S_ISREG(mode) else "folder" if stat.S_ISDIR(mode) else "other"


def open_container(source: str, *, allow_references: bool) -> InputContainer:
    """Open a file or an address for demuxing, with FFmpeg confined to the white-listed formats and protocols.

    Raises LongVLMError, naming the source and the remedy, where that is impossible or refused. Local files
    are never reachable from an address, whatever a playlist there says.
    """
    import av

    scheme = source_scheme(source)
    formats, protocols = _FORMATS, _PROTOCOLS[scheme]
    if scheme == "file":
        path = local_path(source)
        _check_file(path, allow_references)
        target = f"file:{path.absolute()}"  # the prefix keeps FFmpeg from reading a name as a protocol
    else:
        target = source
    options = {}
    if scheme.startswith("http"):
        # FFmpeg trips over servers that close without saying so; asked to keep open, they do.
        options["multiple_requests"] = "1"
        # PyAV's own limit holds for one call at a time, and a reader that is let go of switches it off.
        options["rw_timeout"] = str(int(NETWORK_TIMEOUT_SECONDS * 1e6))
        # FFmpeg takes these for the address itself alone, neither for what a playlist refers to nor under rtsps.
        options |= {"tls_verify": "1", "ca_file": _trusted_certificates()}
    if scheme.startswith("rtsp"):
        formats += ",rtsp,sdp,rtp"
        options["rtsp_transport"] = "tcp"
    if allow_references:
        formats += "," + _REFERRING_FORMATS
        protocols += "," + _PROTOCOLS["http"] + ",crypto,data"
    options |= {"format_whitelist": formats, "protocol_whitelist": protocols}
    timeout = None if scheme == "file" else NETWORK_TIMEOUT_SECONDS
    try:
        return av.open(target, mode="r", options=options, timeout=timeout, metadata_errors="replace")
    except av.FFmpegError as error:
        raise _explain(source, scheme, error) from error


def _trusted_certificates() -> str:
    """The file that SSL_CERT_FILE names, the system's, or certifi's. Raises LongVLMError where the former is none."""
    import ssl

    import certifi

    named = os.environ.get("SSL_CERT_FILE")
    if named and not Path(named).is_file():
        raise LongVLMError(f"SSL_CERT_FILE names {printable(named)}, which is no file; correct or unset it.")
    return ssl.get_default_verify_paths().cafile or certifi.where()


def _check_file(path: Path, allow_references: bool) -> None:
    """Raise LongVLMError for what can be told from a file without FFmpeg, in better words than FFmpeg's."""
    name, kind = printable(path), kind_of_path(path)
    if kind == "missing":
        raise LongVLMError(f"No such video: {name}. Check the path.")
    if kind != "file":
        raise LongVLMError(f"{name} is not a regular file; give a video file, an address, or a folder of images.")
    with naming_errors_of(path), path.open("rb") as file:
        head = file.read(4096)
    if not head:
        raise LongVLMError(f"{name} is empty (0 bytes); copy or download it again.")
    if _PLAYLIST.match(head) and not allow_references:
        raise LongVLMError(
            f"{name} is a playlist: it refers to other files or addresses, which may be hostile. "
            "If you trust it, pass --allow-references (allow_references=True)."
        )


def _explain(source: str, scheme: str, error: Exception) -> LongVLMError:
    """FFmpeg's error at opening, as a message that names the source and the remedy."""
    import av

    name = display_name(source) if scheme != "file" else printable(local_path(source))
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, av.error.ArgumentError):
        return LongVLMError(
            f"{name} is of a format that is not accepted, or a playlist. Convert it to mp4; "
            "if it is a playlist that you trust, pass --allow-references (allow_references=True)."
        )
    if isinstance(error, av.error.InvalidDataError | av.error.EOFError):
        if scheme == "file" and _is_mp4(local_path(source)):
            return LongVLMError(
                f"{name} is an incomplete mp4: its index (the moov atom) is missing or damaged, so no frame "
                "can be found. Copy or download it again, or record it anew."
            )
        return LongVLMError(f"{name} is not a video in a known format; give an mp4, mkv, webm, mov, avi, ts or gif.")
    if scheme == "file":
        return LongVLMError(f"Can't open {name}: {reason}.")
    checked = "the address and the network"
    if scheme == "https":
        checked = "the address, the network and the server's certificate (SSL_CERT_FILE names whom to trust)"
    return LongVLMError(f"Can't reach {name}: {reason}. Check {checked}, or download it first.")


def _is_mp4(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(12)[4:8] in (b"ftyp", b"mdat", b"moov")


class BlockingCalls:
    """Runs calls that may block for long, one at a time, in a thread of their own.

    Python heeds Ctrl-C only between its own instructions in the main thread. Waiting for another thread
    leaves the main thread free to; the stalled call is left behind and ends by its own time limit.
    """

    def __init__(self) -> None:
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._is_finished = False
        threading.Thread(target=self._work, name="longvlm-network", daemon=True).start()

    def run(self, call: Callable[[], _Result]) -> _Result:
        """What the call returns, or raises. Raises RuntimeError after `finish`."""
        if self._is_finished:
            raise RuntimeError("there are no more calls to be made here")
        future: Future[_Result] = Future()
        self._calls.put((call, future))
        return future.result()

    def finish(self, call: Callable[[], object] | None = None) -> None:
        """Make a last call once the one under way, if any, has returned; doesn't wait for either."""
        self._is_finished = True
        if call is not None:
            self._calls.put((call, Future()))
        self._calls.put(None)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, future = item
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is awaited
                future.set_exception(error)
