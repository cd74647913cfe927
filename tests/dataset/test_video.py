"""Files that are called like videos and are none, or lead elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cnnvis_cli.dataset.video import Folder, Video
from cnnvis_cli.errors import UsageError
from cnnvis_cli.nouns import Preprocessing

pytest.importorskip("av")
SMALL = Preprocessing(resize=16, crop=(16, 16))
PLAYLISTS = {
    "concat": b"ffconcat version 1.0\nfile other.gif\n",
    "hls": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.gif\n#EXT-X-ENDLIST\n",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    "subtitles": b"1\n00:00:00,000 --> 00:00:01,000\nwords\n",
    "nothing": b"",
    "noise": np.random.default_rng(0).bytes(5000),
}


def gif(path: Path) -> Path:
    """Three frames."""
    frames = [Image.new("L", (32, 32), level) for level in (0, 100, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40)
    return path


def test_a_name_is_never_taken_for_a_protocol(tmp_path: Path) -> None:
    for name in ("concat:x.gif", "-i.gif", "pipe:0.gif", "%03d.gif", "file:x.gif"):
        assert len(list(Video(gif(tmp_path / name)).frames(SMALL))) == 3


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_called_a_video_leads_nowhere(kind: str, tmp_path: Path) -> None:
    gif(tmp_path / "other.gif")
    (tmp_path / "video.mp4").write_bytes(PLAYLISTS[kind])
    with pytest.raises(UsageError, match=r"video\.mp4: is not a video that can be read"):
        Video(tmp_path / "video.mp4").rate()


@pytest.mark.parametrize("kind", ["fifo", "folder", "missing"])
def test_what_is_no_file_never_blocks(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "video.mp4"
    makers = {"fifo": os.mkfifo, "folder": os.mkdir}
    makers.get(kind, lambda _path: None)(place)
    with pytest.raises(UsageError, match=r"video\.mp4: is not a regular file"):
        Video(place).rate()


def test_frames_of_absurd_size_are_refused(tmp_path: Path) -> None:
    content = bytearray(gif(tmp_path / "video.gif").read_bytes())
    content[6:10] = (9000).to_bytes(2, "little") * 2  # width and height
    (tmp_path / "video.gif").write_bytes(content)
    with pytest.raises(UsageError, match="has frames of 9000x9000 pixels"):
        Video(tmp_path / "video.gif").rate()


@pytest.mark.parametrize(
    ("names", "wrong"),
    [(("1", "2", "10"), True), (("01", "02", "10"), False), (("a2", "b10", "c1"), False)],
)
def test_frames_numbered_without_zeros_are_told(
    names: tuple[str, ...], wrong: bool, tmp_path: Path
) -> None:
    for name in names:
        Image.new("L", (32, 32)).save(tmp_path / f"{name}.png")
    frames = Folder(tmp_path)
    assert len(list(frames.frames(SMALL))) == 3
    told = ["frames are taken in the order of their names, 10.png before 2.png; number them with "]
    assert [text.startswith(told[0]) for text in frames.problems] == [True] * wrong
