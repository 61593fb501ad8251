"""Images from Python: what is taken for one, what comes back about it, and how results lie over it."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sonde
import torch
from PIL import Image
from sonde import _signatures, cli
from sonde.v1 import inspection_pb2 as pb
from sonde_server.config import Settings
from sonde_server.serving.server import Server

from tests.support.seeing import encoded, picture, save_seeing

TEXT = "The tower <image> is in"
SIZE = (28, 40)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    torch.set_num_threads(1)
    folder = save_seeing("llava", tmp_path_factory.mktemp("images") / "llava")
    with Server(Settings(model=str(folder), port=0, device="cpu", dtype="float32")) as server:
        yield server.address


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[sonde.Client]:
    with sonde.Client(address) as client:
        yield client


@pytest.fixture(scope="module")
def trace(client: sonde.Client) -> sonde.CausalTracingResult:
    method = sonde.CausalTracing("image", samples=2, window=1)
    return client.trace(sonde.Prompt(TEXT, picture(1)), targets=[41], method=method)


def sent(image: Any, prompt: Any = TEXT) -> bytes:
    asked = _signatures.trace(sonde.Prompt(prompt, image)).asking.request(None)
    assert isinstance(asked, pb.TraceRequest)
    return asked.prompt.image


def pixels(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_whatever_is_an_image_is_sent_as_a_file(tmp_path: Path) -> None:
    shown = picture(1)
    data, array = encoded(shown), np.asarray(shown)
    file = tmp_path / "shown.png"
    file.write_bytes(data)
    assert sent(data) == sent(bytearray(data)) == sent(memoryview(data)) == sent(file) == sent(str(file)) == data
    for given in (shown, array, torch.from_numpy(np.array(array)), array[::1]):
        assert (pixels(sent(given)) == array).all()
    grey = np.asarray(shown.convert("L"))
    assert (pixels(sent(grey))[..., 0] == grey).all()
    assert (pixels(sent(grey[..., None]))[..., 0] == grey).all()
    assert sent(None) == b""
    assert sent(shown, sonde.Chat([("user", TEXT)]))


@pytest.mark.parametrize(
    "given",
    [
        np.zeros((4, 4)),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((0, 4), np.uint8),
        17,
        ["ball.png"],
    ],
)
def test_what_is_no_image_is_refused_here(given: Any) -> None:
    with pytest.raises(sonde.InvalidRequest, match="image: expected the bytes or the path of a PNG or JPEG"):
        sonde.Prompt(TEXT, given)


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        sonde.Prompt(TEXT, "nowhere.png")


def test_a_prompt_does_not_print_its_image() -> None:
    assert "PNG" not in repr(sonde.Prompt(TEXT, picture(1)))


def test_what_the_model_says_of_images(client: sonde.Client) -> None:
    told = client.model.image
    assert told is not None
    assert (told.placeholder, told.min_positions, told.max_positions, told.sees_itself) == ("<image>", 16, 16, False)
    assert client.model.limits.max_image_pixels == 1 << 24
    assert "'<image>' in a text, 16 positions" in client.model.to_text()


def test_every_result_says_where_the_image_lies(client: sonde.Client, trace: sonde.CausalTracingResult) -> None:
    tokens = client.tokenize(sonde.Prompt(TEXT, picture(1)))
    (grid,) = trace.images
    assert tokens.images == trace.images
    assert (grid.rows, grid.columns) == (4, 4)
    assert grid.positions == trace.spans["image"] == tokens.spans["image"]
    assert trace.corrupted_positions == grid.positions
    assert trace.provenance.image_processor.startswith("CLIPImageProcessorPil, Pillow ")
    plain = client.trace("The tower", targets=[41])
    assert plain.images == ()
    with pytest.raises(ValueError, match="no image"):
        plain.over_image(np.zeros(2))


def test_numbers_are_laid_over_the_image(trace: sonde.CausalTracingResult) -> None:
    grid = trace.images[0]
    every = np.arange(len(trace.tokens))
    assert (trace.over_image(every) == np.array(grid.positions).reshape(4, 4)).all()
    some = trace.over_image(np.array([[1.5, 2.5]]), [grid.positions[5]])
    assert some.shape == (4, 4, 2)
    assert some[1, 1].tolist() == [1.5, 2.5]
    assert np.isnan(some).sum() == 2 * 15
    with pytest.raises(ValueError, match="a position for each of 2 values, got 1"):
        trace.over_image([1.0, 2.0], [3])


def test_a_trace_is_drawn_over_the_image(trace: sonde.CausalTracingResult, tmp_path: Path) -> None:
    plain = trace.plot(tmp_path / "trace.png")
    seen = trace.plot(image=picture(1))
    assert (tmp_path / "trace.png").stat().st_size > 10_000
    for drawn, pictures in ((plain, 0), (seen, 3)):
        panels = [axes for axes in drawn.axes if axes.get_title(loc="left")]
        over = [axes for axes in panels if "place in the image" in axes.get_title(loc="left")]
        assert len(over) == 3
        assert sum(len(axes.images) for axes in over) == pictures
        # The patches lie where the crop is: the picture is wider.
        assert over[0].get_xlim()[0] < -0.5
        assert over[0].get_xlim()[1] > 4.5
    labels = [label.get_text() for label in plain.axes[0].get_yticklabels()]
    assert "image (strongest of 16)*" in labels
    assert len(labels) == len(trace.tokens) - 15
    assert "image (strongest of 16)*" in trace.heatmap_text()
    assert "image (strongest of 16)" in trace._repr_html_()


def test_the_row_of_the_image_is_its_strongest_state(trace: sonde.CausalTracingResult) -> None:
    values, labels = trace._folded("residual_post", 0)
    inside = list(trace.images[0].positions)
    effect = trace.effect["residual_post"][inside, :, 0]
    best = effect[np.abs(effect).argmax(0), np.arange(effect.shape[1])]
    row = labels.index("image (strongest of 16)*")
    np.testing.assert_allclose(values[row] - trace.corrupted[0], best, atol=1e-6)
    outside = [position for position in range(len(trace.tokens)) if position not in inside]
    assert (np.delete(values, row, 0) == trace.restored["residual_post"][outside, :, 0]).all()


def test_a_trace_of_some_positions_is_drawn_as_it_is(client: sonde.Client) -> None:
    method = sonde.CausalTracing("image", samples=1, positions=["image.last", "end"], components="mlp_out")
    found = client.trace(sonde.Prompt(TEXT, picture(1)), targets=[41], method=method)
    assert len(found.plot().axes[0].get_yticklabels()) == 2


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_what_is_saved_is_loaded_again(trace: sonde.CausalTracingResult, tmp_path: Path, ending: str) -> None:
    trace.save(tmp_path / f"trace.{ending}")
    loaded = sonde.load(tmp_path / f"trace.{ending}")
    assert loaded.images == trace.images
    assert loaded.provenance == trace.provenance
    assert loaded.request == trace.request


def test_cases_bring_their_images_through_files(client: sonde.Client, tmp_path: Path) -> None:
    cases = sonde.Cases([sonde.Case(sonde.Prompt(TEXT, picture(number)), targets=[41]) for number in (1, 2)])
    cases.to_jsonl(tmp_path / "cases.jsonl")
    again = sonde.Cases.from_jsonl(tmp_path / "cases.jsonl")
    first, second = (client.trace(one) for one in (cases, again))
    for one, other in zip(first, second, strict=True):
        assert (one.prediction.logits == other.prediction.logits).all()
        assert one.images
    assert first[0].prediction.logits != first[1].prediction.logits


def test_edits_and_knock_outs_name_the_image(client: sonde.Client) -> None:
    prompt, other = (sonde.Prompt(TEXT, picture(number)) for number in (1, 2))
    scores = sonde.site("attention_scores", layers=[0, 1, 2], positions="end")
    found = client.intervene(
        prompt,
        {
            "another image": sonde.patch(sonde.site("token_embedding", positions="image"), other),
            "not looked at": sonde.knockout(scores, "image"),
        },
        targets=[41],
    )
    expected = client.trace(other, targets=[41]).prediction
    np.testing.assert_allclose(found["another image"].log_probabilities, expected.log_probabilities, rtol=1e-5)
    assert found["not looked at"].edit_norms[0] > 0


def test_the_command_sends_files(address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, other = tmp_path / "own.png", tmp_path / "other.png"
    own.write_bytes(encoded(picture(1)))
    other.write_bytes(encoded(picture(2)))
    where = ["--address", address, "--json"]
    asked = ["trace", TEXT, "--image", str(own), "--top", "3"]
    assert cli.main([*where, *asked]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert len(plain["images"][0]["positions"]) == 16
    given = ["--counterfactual", TEXT, "--source-image", str(other), "--layers", "0", "--positions", "end"]
    assert cli.main([*where, *asked, *given, "--plot", str(tmp_path / "drawn.png")]) == 0
    assert len(json.loads(capsys.readouterr().out)["corrupted_positions"]) == 16
    assert cli.main([*where, "trace", TEXT, "--image", str(tmp_path / "none.png")]) == 2
    assert "none.png" in capsys.readouterr().err
    assert cli.main([*where, "trace", TEXT]) == 2
    assert "expected an image" in capsys.readouterr().err
    assert cli.main(["--address", address, "generate", TEXT, "--image", str(own), "--tokens", "3"]) == 0
    assert cli.main([*where, "trace", "--cases", str(own), "--image", str(own)]) == 2
