"""Files that claim to be images: what is no image, too large, or made to be costly, is refused by its field.

Whatever was sent, the server goes on to answer.
"""

import io
import logging
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from PIL import Image
from sonde.v1 import inspection_pb2 as pb
from sonde.v1.inspection_pb2_grpc import InspectionServiceStub
from sonde_server.config import Limits, Settings
from sonde_server.model import loading
from sonde_server.model.families.vision import llava
from sonde_server.model.vision import Size, by_shape, by_size, merged, square, tiled, unpadded
from sonde_server.serving.server import Server
from sonde_server.wire.decode import decode_trace
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaProcessor,
    Qwen2VLImageProcessorPil,
)
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from tests.conftest import DEADLINE
from tests.support import wire
from tests.support.seeing import CANVASES, SEEING, encoded, load_seeing, picture, save_seeing

TEXT = "The tower <image> is in"
PIXELS = 200_000


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        yield save_seeing("llava", Path(directory) / "llava")


@contextmanager
def serving(folder: Path, **limits: Any) -> Iterator[InspectionServiceStub]:
    settings = Settings(model=str(folder), port=0, device="cpu", dtype="float32", **limits)
    with Server(settings) as server, grpc.insecure_channel(server.address) as channel:
        grpc.channel_ready_future(channel).result(timeout=DEADLINE)
        yield InspectionServiceStub(channel)


@pytest.fixture(scope="module")
def stub(folder: Path) -> Iterator[InspectionServiceStub]:
    with serving(folder, max_image_bytes=100_000, max_image_pixels=PIXELS) as stub:
        yield stub


def ask(stub: InspectionServiceStub, image: bytes, text: str = TEXT) -> pb.RunContext:
    request = pb.TraceRequest(prompt=pb.Prompt(text=text, image=image), top_k=3)
    return next(iter(stub.Trace(request, timeout=DEADLINE))).context


def said(stub: InspectionServiceStub, image: bytes) -> str:
    refused = wire.refusal(stub.Trace(pb.TraceRequest(prompt=pb.Prompt(text=TEXT, image=image)), timeout=DEADLINE))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(refused.violations) == {"prompt.image"}
    return refused.violations["prompt.image"]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def claiming(width: int, height: int, depth: int = 8) -> bytes:
    """A PNG that says it is so large, and has hardly any data."""
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0")), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(kind: str, mode: str = "RGB", size: tuple[int, int] = (40, 28), **options: Any) -> bytes:
    return encoded(Image.new(mode, size), kind, **options)


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "text": (lambda: b"<svg onload='x'>", "expected the bytes of a PNG or JPEG"),
    "gif": (lambda: saved("GIF"), "expected the bytes of a PNG or JPEG"),
    "bmp": (lambda: saved("BMP"), "expected the bytes of a PNG or JPEG"),
    "tiff": (lambda: saved("TIFF"), "expected the bytes of a PNG or JPEG"),
    "webp": (lambda: saved("WEBP"), "expected the bytes of a PNG or JPEG"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "expected the bytes of a PNG or JPEG"),
    "too many bytes": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(100_000), "expected at most 100000 bytes, got 100008"),
    "the magic alone": (lambda: b"\x89PNG\r\n\x1a\n", "that can be read"),
    "a jpeg's magic alone": (lambda: b"\xff\xd8\xff\xe0", "that can be read"),
    "a bomb": (lambda: claiming(9500, 9500, 1), "pixels"),
    "a larger bomb": (lambda: claiming(60_000, 60_000, 1), "that can be read"),
    "more pixels than allowed": (lambda: claiming(500, 401), f"expected at most {PIXELS} pixels, got 500 x 401"),
    "elongated": (lambda: claiming(2010, 10), "sides of at most 200 to 1, got 2010 x 10"),
    "without width": (lambda: claiming(0, 10), "expected"),
    "too little data": (lambda: claiming(40, 28), "that can be read"),
    "truncated png": (lambda: encoded(picture(1))[:-40], "that can be read"),
    "truncated jpeg": (lambda: encoded(picture(1), "JPEG")[:-200], "that can be read"),
    "animated": (lambda: frames(2), "expected a single picture, got 2 frames"),
    "sixteen bits": (lambda: encoded(Image.fromarray(np.zeros((28, 40), np.uint16))), "got mode I;16"),
    "cmyk": (lambda: saved("JPEG", "CMYK"), "got mode CMYK"),
}


def frames(count: int) -> bytes:
    return encoded(picture(1), save_all=True, append_images=[picture(number) for number in range(2, count + 1)])


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(stub: InspectionServiceStub, name: str) -> None:
    make, expected = HOSTILE[name]
    assert expected in said(stub, make())
    ask(stub, encoded(picture(1)))


def test_what_it_claims_to_be_is_what_it_is_read_as(stub: InspectionServiceStub) -> None:
    """A PNG behind the magic bytes of a JPEG is no JPEG, and is not read as anything else."""
    assert "JPEG file that can be read" in said(stub, b"\xff\xd8\xff" + encoded(picture(1)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes_that_are_read(stub: InspectionServiceStub, mode: str) -> None:
    assert ask(stub, encoded(picture(1).convert(mode))).images[0].rows == 4


def test_a_picture_that_lies_on_its_side(stub: InspectionServiceStub) -> None:
    """What the file says of its orientation is followed, as transformers does when it loads images."""
    shown = picture(1)
    turned = Image.Exif()
    turned[0x0112] = 6
    lying = encoded(shown.rotate(90, expand=True), exif=turned)
    assert ask(stub, lying).clean == ask(stub, encoded(shown)).clean


def test_an_image_that_is_longer_than_a_prompt(folder: Path) -> None:
    with serving(folder, max_prompt_tokens=12) as stub:
        assert "an image of at most 12 positions, got 40 x 28 pixels, which have 16" in said(stub, encoded(picture(1)))
        assert stub.GetModel(pb.GetModelRequest()).limits.max_image_pixels == 1 << 24


def test_images_count_in_what_a_request_holds(folder: Path) -> None:
    """The file, and the pixels while they are prepared."""
    file = encoded(picture(1))
    tokens, held = questions_of(folder, pb.Prompt(text=TEXT, image=file))
    plain = pb.Prompt(token_ids=pb.TokenIds(ids=[5] * tokens))
    assert questions_of(folder, plain) == (tokens, held - 3 * 24 * 24 * 4 - len(file))


def questions_of(folder: Path, prompt: pb.Prompt) -> tuple[int, int]:
    """How many tokens a prompt has, and what a question about it holds beside the weights."""
    loaded = loading.load(str(folder), device="cpu", dtype="float32")
    question = decode_trace(pb.TraceRequest(prompt=prompt), loaded.description, loaded.vocabulary, Limits())
    return question.total_tokens, question.held_bytes(loaded.description)


# ------------------------------------------------------------------ loading


def test_without_pillow_texts_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with serving(folder) as stub:
        assert "hosted for texts alone" in caplog.text
        assert "the extra `vision` installs it" in caplog.text
        assert not stub.GetModel(pb.GetModelRequest()).HasField("image")
        list(stub.Trace(pb.TraceRequest(prompt=pb.Prompt(text="The tower"), top_k=1), timeout=DEADLINE))
        assert "expected no image, because the hosted model reads none" in said(stub, encoded(picture(1)))


def test_without_an_image_processor_texts_alone(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("*processor*"))
    with caplog.at_level(logging.WARNING), serving(bare) as stub:
        assert "hosted for texts alone" in caplog.text
        list(stub.Trace(pb.TraceRequest(prompt=pb.Prompt(text="The tower"), top_k=1), timeout=DEADLINE))


def test_without_a_tokenizer_images_go_among_ids(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("tokenizer*", "special*", "chat*"))
    with serving(folder) as stub:
        known = ask(stub, encoded(picture(1)))
    with serving(bare) as stub:
        assert not stub.GetModel(pb.GetModelRequest()).image.placeholder
        ids = pb.TokenIds(ids=[token.id for token in known.tokens])
        prompt = pb.Prompt(token_ids=ids, image=encoded(picture(1)))
        found = next(iter(stub.Trace(pb.TraceRequest(prompt=prompt, top_k=3), timeout=DEADLINE))).context
    assert list(found.clean.top_log_probabilities) == list(known.clean.top_log_probabilities)


def test_a_tower_whose_images_are_not_known_here_is_hosted_for_texts() -> None:
    config = SEEING["llava"].config(420, {"<image>": 419})
    assert llava(config).vision is not None
    config.vision_config.model_type = "pixtral"
    assert llava(config).vision is None


# ------------------------------------------------------------------ placeholders and templates


def test_ids_are_those_of_the_models_own_processor(folder: Path, stub: InspectionServiceStub) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = LlavaProcessor(
        CLIPImageProcessorPil.from_pretrained(folder),
        tokenizer,
        patch_size=6,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    for text in (TEXT, "<image>\nThe", "The<image>"):
        expected = processor(images=picture(1), text=text, return_tensors="pt")["input_ids"][0].tolist()
        assert [one.id for one in ask(stub, encoded(picture(1)), text).tokens] == expected


PARTS = (
    "{% for m in messages %}{{ m['role'] + ': ' }}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{{ '\n' }}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"


@pytest.mark.parametrize(("template", "between"), [(PARTS, "\n"), (PLAIN, "")], ids=["parts", "plain"])
def test_a_chat_with_an_image(folder: Path, tmp_path: Path, template: str, between: str) -> None:
    """Also by a template that takes texts and images apart, as those of vision-language models do."""
    copy = tmp_path / "chat"
    shutil.copytree(folder, copy)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(copy)
    messages = [
        pb.ChatMessage(role="system", content="Tom and Mary"),
        pb.ChatMessage(role="user", content="<image> Where is it?"),
    ]
    with serving(copy) as stub:
        chat = pb.Prompt(chat=pb.Chat(messages=messages), image=encoded(picture(1)))
        found = next(iter(stub.Trace(pb.TraceRequest(prompt=chat, top_k=3), timeout=DEADLINE))).context
        text = f"<s>system: Tom and Mary\nuser: <image>{between} Where is it?\n".removeprefix("<s>")
        ids = tokenizer(text.replace("<image>", 16 * "<image>"), add_special_tokens=False).input_ids
        assert [one.id for one in found.tokens] == ids
        spans = {span.name: list(span.positions) for span in found.spans}
        assert spans["image"] == [place for place, one in enumerate(ids) if one == found.tokens[spans["image"][0]].id]
        assert "".join(found.tokens[place].text for place in spans["system"]).strip() == "Tom and Mary"
        if not between:
            assert spans["user"][:16] == spans["image"]
            last = "".join(found.tokens[place].text for place in spans["user"][16:])
            assert last.strip() == "Where is it?"
        messages[1].content = "Where?"
        chat = pb.Prompt(chat=pb.Chat(messages=messages), image=encoded(picture(1)))
        refused = wire.refusal(stub.Trace(pb.TraceRequest(prompt=chat), timeout=DEADLINE))
        assert "'<image>' once, where the image goes" in refused.violations["prompt.chat.messages"]


# ------------------------------------------------------------------ where positions lie


@pytest.mark.parametrize("size", [(40, 28), (28, 40), (31, 97), (600, 20), (16, 16), (333, 500), (8, 1600)])
def test_grids_of_images_of_any_shape_are_those_of_the_processor(size: tuple[int, int]) -> None:
    bounds = {"shortest_edge": 16 * 16, "longest_edge": 32 * 48}
    processor = Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size=bounds)
    _, rows, columns = processor(images=Image.new("RGB", size), return_tensors="np")["image_grid_thw"][0].tolist()
    spread = merged(Size(*size), processor)
    assert (spread.grids[0].rows, spread.grids[0].columns) == (rows // 2, columns // 2)
    assert spread.positions == rows * columns // 4


@pytest.mark.parametrize("bounds", [(32, 16), (40, 16), pytest.param((9000, 3000), marks=pytest.mark.full)])
@pytest.mark.parametrize("size", [(40, 28), (28, 40), (31, 97), (300, 10), (16, 16), (5, 5)])
def test_tiles_of_images_of_any_shape_are_those_of_the_processor(
    bounds: tuple[int, int], size: tuple[int, int]
) -> None:
    longest, edge = ({"longest_edge": bound} for bound in bounds)
    processor = Idefics3ImageProcessorPil(size=longest, max_image_size=edge)
    given = processor(images=Image.new("RGB", size), return_tensors="np", return_row_col_info=True)
    spread = tiled(2, by_size)(Size(*size), processor)
    assert spread.tiles == (given["rows"][0][0], given["cols"][0][0])
    assert spread.positions == 4 * given["pixel_values"].shape[1]
    assert sorted(place for grid in spread.grids for place in grid.places) == list(range(spread.positions))


@pytest.mark.parametrize("bounds", [(1, 12), (1, 6), (3, 4), (1, 1)])
@pytest.mark.parametrize("size", [(40, 28), (28, 40), (31, 97), (300, 10), (16, 16), (5, 5), (32, 32), (700, 700)])
def test_tiles_by_shape_are_those_of_the_processor(bounds: tuple[int, int], size: tuple[int, int]) -> None:
    processor = GotOcr2ImageProcessorPil(size={"height": 16, "width": 16}, min_patches=bounds[0], max_patches=bounds[1])
    given = processor(images=Image.new("RGB", size), return_tensors="np", crop_to_patches=True)
    assert tiled(2, by_shape)(Size(*size), processor).positions == 4 * int(given["num_patches"][0])


@pytest.mark.parametrize("size", [(40, 28), (28, 40), (31, 97), (300, 10), (10, 300), (24, 24), (5, 5), (700, 300)])
def test_tiles_without_padding_are_those_of_the_model(size: tuple[int, int]) -> None:
    width, height = size
    rows, columns = get_anyres_image_grid_shape((height, width), CANVASES, 24)
    kept = unpad_image(torch.zeros(1, 4 * rows, 4 * columns), (height, width))
    spread = unpadded(4, 24, [(high, wide) for high, wide in CANVASES])(Size(width, height), None)
    detail = spread.grids[0]
    assert spread.positions == 16 + kept.shape[1] * (kept.shape[2] + 1)
    if kept.numel():
        assert (detail.rows, detail.columns) == (kept.shape[1], kept.shape[2])
        # What is left is the image, but for a part of a patch at its edges.
        one = 1.01 / min(detail.rows, detail.columns)
        assert all(abs(edge - whole) <= one for edge, whole in zip((detail.left, detail.top), (0, 0), strict=True))
        assert all(abs(edge - whole) <= one for edge, whole in zip((detail.right, detail.bottom), (1, 1), strict=True))


def test_where_tiles_lie() -> None:
    """Rows of positions go across all tiles of a row."""
    processor = Idefics3ImageProcessorPil(size={"longest_edge": 48}, max_image_size={"longest_edge": 16})
    detail, whole = tiled(2, by_size)(Size(48, 20), processor).grids
    assert (detail.rows, detail.columns) == (4, 6)
    assert list(detail.places)[:12] == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]
    assert list(whole.places) == [24, 25, 26, 27]


def test_a_tile_is_joined_row_by_row(tmp_path: Path) -> None:
    """A patch has its effect in the cell that lies over it."""
    model: Any = load_seeing(save_seeing("idefics3", tmp_path / "idefics3"))
    for row, column in ((0, 0), (1, 3), (2, 1), (3, 3)):
        states = torch.zeros(2, 16, 24)
        states[1, 4 * row + column] = 1.0
        with torch.no_grad():
            plain, marked = model.model.connector(states)
        moved = (marked - plain).abs().sum(-1).nonzero()[:, 0].tolist()
        assert moved == [2 * (row // 2) + column // 2]


@pytest.mark.parametrize("size", [(40, 28), (28, 40), (100, 24), (24, 24)])
def test_what_a_centre_crop_leaves(size: tuple[int, int]) -> None:
    """A ramp tells where each pixel comes from."""
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, do_normalize=False, do_rescale=False
    )
    width, height = size
    ramp = np.zeros((height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width)[None]
    ramp[..., 1] = np.linspace(0, 255, height)[:, None]
    pixels = processor(images=Image.fromarray(ramp), return_tensors="np")["pixel_values"][0]
    (grid,) = square(4)(Size(*size), processor).grids
    for channel, (first, last) in enumerate(((grid.left, grid.right), (grid.top, grid.bottom))):
        line = pixels[channel].mean(axis=channel)
        assert abs(line[0] / 255 - first) < 1.5 / 24 + 0.03
        assert abs(line[-1] / 255 - last) < 1.5 / 24 + 0.03


def test_the_bytes_of_a_stream_are_not_kept(stub: InspectionServiceStub) -> None:
    """The same image as JPEG is another image, for its pixels differ."""
    stream = io.BytesIO()
    picture(1).save(stream, "JPEG", quality=60)
    assert ask(stub, stream.getvalue()).clean != ask(stub, encoded(picture(1))).clean
