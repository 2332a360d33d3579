"""Text in pictures: what is read where, by the packaged models alone."""

import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

pytest.importorskip("rapidocr")
pytest.importorskip("onnxruntime")

from infra.errors import ConfigError
from transforms.pictures import ocr


def page(*texts: tuple[str, int, int, int], size=(420, 160), ink="black", paper="white") -> np.ndarray:
    image = Image.new("RGB", size, paper)
    for text, x, y, points in texts:
        ImageDraw.Draw(image).text((x, y), text, ink, ImageFont.load_default(size=points))
    return np.asarray(image)


def test_words_are_read_with_their_boxes():
    words = ocr.read_words(page(("PATIENT 4711", 20, 20, 24), ("supine", 250, 100, 20)))
    assert [word.text for word in words] == ["PATIENT 4711", "supine"]
    x0, y0, x1, y1 = words[0].box
    assert 10 <= x0 <= 24 and 12 <= y0 <= 28 and 40 <= y1 <= 56 and 150 <= x1 <= 230
    assert all(0.8 < word.score <= 1 for word in words)
    assert ocr.read_words(page(("PATIENT 4711", 20, 20, 24)), min_score=1.1) == []


def test_grey_dark_and_empty_pictures():
    grey = page(("Lot 1", 30, 40, 28), ink="white", paper="black")[:, :, 0]
    assert [word.text for word in ocr.read_words(grey)] == ["Lot 1"]
    assert ocr.read_words(np.zeros((64, 64), np.uint8)) == []
    assert ocr.read_words(np.full((5, 3, 3), 255, np.uint8)) == []


@pytest.mark.parametrize("text", ["A", "B", "D", "a", "b", "(a)", "H"])
def test_a_single_letter_is_read_from_its_crop(text):
    line = ocr.read_line(page((text, 6, 4, 20), size=(40, 32)))
    assert line.text == text and line.score > 0.8


def test_nothing_is_read_where_nothing_stands():
    assert ocr.read_line(np.full((30, 30, 3), 255, np.uint8)) == ocr.Line("", 0.0)
    assert ocr.read_line(np.zeros((0, 10), np.uint8)) == ocr.Line("", 0.0)


def test_the_same_pixels_give_the_same_words():
    pixels = page(("Western blot", 20, 30, 22), ("42 kDa", 200, 90, 18))
    assert ocr.read_words(pixels) == ocr.read_words(pixels)


def test_no_network_is_asked_and_no_file_is_written(monkeypatch, tmp_path, capfd):
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    ocr._engine.cache_clear()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    models = Path(ocr._model(*ocr.RECOGNISER)).parent
    before = sorted(models.iterdir())
    assert [word.text for word in ocr.read_words(page(("Dose", 20, 30, 24)))] == ["Dose"]
    assert ocr.read_line(page(("A", 6, 4, 20), size=(40, 32))).text == "A"
    assert sorted(models.iterdir()) == before and list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_other_weights_are_refused_loudly(monkeypatch):
    with pytest.raises(ConfigError, match="nothing is downloaded: pip install"):
        ocr._model("no_such_model.onnx", "0" * 64)
    monkeypatch.setattr(ocr, "RECOGNISER", (ocr.RECOGNISER[0], "0" * 64))
    ocr._engine.cache_clear()
    with pytest.raises(ConfigError, match="expected 000000000000"):
        ocr.read_line(page(("A", 6, 4, 20), size=(40, 32)))
    ocr._engine.cache_clear()
