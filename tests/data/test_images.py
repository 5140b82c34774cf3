"""Decoding of every kind of image a user may have, and of what is none."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from facemetric.data import images
from facemetric.data.images import BadImage, Preprocess, decode, normalise, upload
from facemetric.errors import ConfigError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def packed(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)  # type: ignore[arg-type]
    return out.getvalue()


def corners() -> Image.Image:
    """8 x 6 with red, green, blue and white quarters."""
    image = Image.new("RGB", (8, 6))
    for box, colour in [((0, 0), RED), ((4, 0), GREEN), ((0, 3), BLUE), ((4, 3), WHITE)]:
        image.paste(colour, (*box, box[0] + 4, box[1] + 3))
    return image


def noise(width: int = 64, height: int = 48) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height))


def seen(data: bytes, **options: int) -> np.ndarray:
    image = decode(data, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def reason(data: bytes, **options: int) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data, **options)
    assert caught.value.reason
    assert "\n" not in caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize("form", ["PNG", "BMP", "PPM", "TIFF", "GIF", "WEBP"])
def test_lossless_forms(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    np.testing.assert_array_equal(seen(packed(corners(), form, **options)), np.asarray(corners()))


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"icc_profile": b"x" * 200}]
)
def test_jpeg_is_what_pil_sees(options: dict[str, object]) -> None:
    data = packed(noise(), "JPEG", quality=90, **options)
    np.testing.assert_array_equal(seen(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_rotation(orientation: int, form: str) -> None:
    big = corners().resize((80, 60), Image.Resampling.NEAREST)
    stored = {  # how a camera stores it so that the viewer's turn makes it upright
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    turned = big if stored is None else big.transpose(stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    pixels = seen(packed(turned, form, exif=exif, **options)).astype(int)
    assert pixels.shape == (60, 80, 3)
    for (y, x), colour in {(15, 20): RED, (15, 60): GREEN, (45, 20): BLUE, (45, 60): WHITE}.items():
        assert np.abs(pixels[y, x] - colour).max() < 12


def test_damaged_exif_does_not_matter() -> None:
    data = packed(noise(), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff\xff\xff")
    assert seen(data).shape == (48, 64, 3)


def test_grey_palette_and_bits() -> None:
    grey = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8) * 5)
    for data in (packed(grey, "PNG"), packed(grey, "PPM"), packed(grey, "TIFF")):
        np.testing.assert_array_equal(seen(data), np.repeat(np.asarray(grey)[..., None], 3, 2))
    assert seen(packed(grey, "JPEG", quality=95)).shape == (6, 8, 3)
    np.testing.assert_array_equal(seen(packed(corners().quantize(8), "PNG")), np.asarray(corners()))
    bits = Image.fromarray(np.eye(8, dtype=bool))
    assert set(np.unique(seen(packed(bits, "PNG")))) == {0, 255}


def test_cmyk_jpeg() -> None:
    pixels = seen(packed(corners().resize((80, 60), 0).convert("CMYK"), "JPEG", quality=95)).astype(int)
    for (y, x), colour in {(15, 20): RED, (15, 60): GREEN, (45, 20): BLUE, (45, 60): WHITE}.items():
        assert np.abs(pixels[y, x] - colour).max() < 40


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    if mode == "P":
        image = Image.new("P", (2, 1), 0)
        image.putpalette([0, 0, 0, 90, 90, 90])
        image.putpixel((1, 0), 1)
        data = packed(image, "PNG", transparency=0)
    else:
        image = Image.new(mode, (2, 1))
        image.putpixel((1, 0), (90, 255) if mode == "LA" else (90, 90, 90, 255))
        data = packed(image, "PNG")
    assert seen(data).tolist() == [[[255] * 3, [90] * 3]]
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    assert seen(packed(half, "PNG"))[0, 0, 0] == 127
    keyed = Image.new("RGB", (1, 1), (1, 2, 3))
    assert seen(packed(keyed, "PNG", transparency=(1, 2, 3))).tolist() == [[[255] * 3]]


def test_sixteen_bits_keep_their_scale() -> None:
    deep = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    for form in ("PNG", "TIFF"):
        assert seen(packed(Image.fromarray(deep), form))[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    pgm = b"P5 5 1 65535\n" + deep.astype(">u2").tobytes()
    assert seen(pgm)[0, :, 0].tolist() == [0, 0, 1, 128, 255]
    assert "0..65535" in reason(packed(Image.fromarray(np.array([[-1, 5]], np.int32)), "TIFF"))
    assert "floating-point" in reason(packed(Image.fromarray(np.ones((1, 2), np.float32)), "TIFF"))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_frame_of_several(form: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if form == "WEBP" else {}
    data = packed(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert seen(data)[3, 4].tolist() == list(RED)


def test_what_is_no_image() -> None:
    assert reason(b"") == "zero bytes"
    assert reason(b"hello, world" * 50) == "no image of a known kind"
    assert reason(b"\xff\xd8\xff" + bytes(100))
    assert reason(b"%PDF-1.7 ...") == "a PDF document; save its page as a picture"
    assert reason(b"\0\0\0\x18ftypmp42" + bytes(99)) == "a video; save a frame of it as a picture"
    assert reason(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") == "no image of a known kind"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "BMP", "PPM", "TIFF", "GIF", "WEBP"])
def test_cut_short_at_any_byte_is_bad_never_grey(form: str) -> None:
    image = noise()
    data = packed(image, form)
    whole = seen(data)
    for size in range(0, len(data), max(1, len(data) // 60)):
        try:
            pixels = seen(data[:size])
        except BadImage:
            continue
        # What may be missing is what carries no pixels.
        np.testing.assert_array_equal(pixels, whole)
    assert reason(data[: len(data) // 2])


def png_of(width: int, height: int) -> bytes:
    """The head of a PNG that claims to be so large."""
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(9))),
    ]
    chunks = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_too_many_pixels() -> None:
    assert reason(png_of(30_000, 30_000)) == "a decompression bomb"
    with pytest.warns(Image.DecompressionBombWarning):
        assert reason(png_of(10_000, 10_000)) == (
            "10000 x 10000 pixels, at most 64000000 are decoded; save it smaller, or as a JPEG"
        )
    data = packed(noise(64, 48), "PNG")
    assert reason(data, max_pixels=64 * 48 - 1).startswith(
        "64 x 48 pixels, at most 3071 are decoded; save it"
    )
    assert seen(data, max_pixels=64 * 48).shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("pixels", "enough", "shape"),
    [
        (64 * 48, 0, (48, 64)),
        (64 * 48 - 1, 0, (24, 32)),
        (32 * 24 - 1, 0, (12, 16)),
        (16 * 12 - 1, 0, (6, 8)),
        (64 * 48 - 1, 40, (24, 32)),  # the limit is stronger than what would be enough
        (64 * 48 - 1, 12, (12, 16)),
    ],
)
def test_a_jpeg_above_the_limit_is_decoded_smaller(pixels: int, enough: int, shape: tuple[int, int]) -> None:
    small = seen(packed(noise(), "JPEG", quality=95), max_pixels=pixels, enough=enough)
    assert small.shape == (*shape, 3)
    expected = np.asarray(noise().resize(shape[::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(small.astype(int) - expected).mean() < 8


def test_a_jpeg_that_is_too_large_at_an_eighth_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = packed(noise(), "JPEG")
    assert reason(data, max_pixels=8 * 6 - 1) == "8 x 6 pixels, at most 47 are decoded; save it smaller"
    monkeypatch.setattr(images, "MAX_JPEG_PIXELS", 64 * 48 - 1)
    assert reason(data) == "64 x 48 pixels, at most 3071 are decoded; save it smaller"


@pytest.mark.filterwarnings("error")  # PIL warns of a bomb above 89 megapixels, and refuses 179
@pytest.mark.parametrize("size", [(10_400, 7_800), (16_320, 12_240)])
def test_photographs_of_81_and_200_megapixels(size: tuple[int, int]) -> None:
    data = packed(Image.new("RGB", size, RED), "JPEG")
    image = decode(data, enough=300)
    assert image.size == (-(-size[0] // 8), -(-size[1] // 8))
    assert np.abs(np.asarray(image)[500, 500].astype(int) - RED).max() < 3
    whole = decode(data)
    assert whole.width * whole.height <= images.MAX_PIXELS < 4 * whole.width * whole.height


def test_the_first_picture_of_a_phones_several() -> None:
    """MPO: a JPEG with further ones behind it, as phones write portraits."""
    data = packed(corners().resize((80, 60)), "MPO", save_all=True, append_images=[noise(80, 60)])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert np.abs(seen(data)[10, 10].astype(int) - RED).max() < 9
    assert seen(data, enough=25).shape == (30, 40, 3)


def test_extreme_shapes() -> None:
    for size in ((1, 1), (1, 4000), (4000, 1)):
        assert seen(packed(Image.new("RGB", size, RED), "PNG")).shape == (size[1], size[0], 3)
        assert seen(packed(Image.new("RGB", size, RED), "JPEG")).shape == (size[1], size[0], 3)


@pytest.mark.parametrize(
    ("enough", "shape"), [(0, (600, 800)), (100, (150, 200)), (80, (150, 200)), (301, (600, 800))]
)
def test_large_jpeg_is_decoded_small(enough: int, shape: tuple[int, int]) -> None:
    small = seen(packed(noise(800, 600), "JPEG"), enough=enough)
    assert small.shape[:2] == shape
    expected = np.asarray(noise(800, 600).resize(shape[::-1], Image.Resampling.BOX)).astype(int)
    assert np.abs(small.astype(int) - expected).mean() < 6


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "BMP", "PPM", "TIFF", "GIF", "WEBP"]),
    st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_bytes_are_read_or_bad(form: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(packed(noise(24, 16), form))
    for place, value in changes:
        data[place % len(data)] = value
    with contextlib.suppress(BadImage):
        assert decode(bytes(data), max_pixels=10_000).mode == "RGB"


def test_normalise() -> None:
    pre = Preprocess(size=(2, 3), mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.125))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 2, 3, 3)).astype(np.uint8))
    before = images.clone()
    got = normalise(images, pre, "cpu")
    expected = (images.double() / 255 - torch.tensor(pre.mean)) / torch.tensor(pre.std)
    assert got.shape == (4, 3, 2, 3)
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got.double(), expected.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
    assert torch.equal(images, before)
    swapped = normalise(images, Preprocess(size=(2, 3), mean=pre.mean, std=pre.std, color="bgr"), "cpu")
    expected = (images.flip(3).double() / 255 - torch.tensor(pre.mean)) / torch.tensor(pre.std)
    torch.testing.assert_close(swapped.double(), expected.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
    assert swapped.is_contiguous(memory_format=torch.channels_last)
    assert normalise(images[:0], pre, "cpu").shape == (0, 3, 2, 3)


def test_preprocess_as_json() -> None:
    pre = Preprocess(size=(96, 112), crop=(0.1, 0.2, 0.0, 0.05), interpolation="bicubic", color="bgr")
    assert Preprocess.from_dict(json.loads(json.dumps(pre.to_dict()))) == pre
    assert Preprocess.from_dict({}) == Preprocess()
    with pytest.raises(ConfigError, match="unknown preprocessing key 'sise': did you mean 'size'"):
        Preprocess.from_dict({"sise": [1, 1]})


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Preprocess(size=(0, 5)), "above 0"),
        (lambda: Preprocess(size=(5,)), "2 numbers"),  # type: ignore[arg-type]
        (lambda: Preprocess(mean=("a", 0, 0)), "3 numbers"),  # type: ignore[arg-type]
        (lambda: Preprocess(std=(0.0, 1, 1)), "above 0"),
        (lambda: Preprocess(crop=(0.5, 0, 0.5, 0)), "below 1"),
        (lambda: Preprocess(crop=(-0.1, 0, 0, 0)), "0 or more"),
        (lambda: Preprocess(interpolation="bilinaer"), "did you mean 'bilinear'"),
        (lambda: Preprocess(color="rbg"), "unknown color"),
        (lambda: Preprocess(size=112), "2 numbers"),  # type: ignore[arg-type]
    ],
)
def test_preprocess_faults(make: Callable[[], Preprocess], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        make()


def test_an_exif_that_cannot_be_read_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(image: Image.Image) -> Image.Exif:
        raise SyntaxError("not a TIFF file")

    data = packed(noise(), "PNG")
    monkeypatch.setattr(Image.Image, "getexif", damaged)
    np.testing.assert_array_equal(seen(data), noise())


def test_memory_that_runs_out_is_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(image: Image.Image) -> None:
        raise MemoryError

    data = packed(noise(), "PNG")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", full)
    with pytest.raises(BadImage, match=r"^needs more memory than there is$"):
        decode(data)


def test_a_cuda_device_gets_its_pixels_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so does a copy go on beside the computation; what is pinned already is not copied once more."""
    done: list[tuple[str, object]] = []
    device = torch.device("cuda", 0)

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        done.append(("pin", None))
        return tensor

    def to(tensor: torch.Tensor, where: torch.device, non_blocking: bool = False) -> torch.Tensor:
        done.append((str(where), non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    upload(torch.zeros(2), device)
    assert done == [("pin", None), ("cuda:0", True)]
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)
    upload(torch.zeros(2), device)
    assert done[2:] == [("cuda:0", True)]
    upload(torch.zeros(2), torch.device("cpu"))
    assert done[3:] == [("cpu", True)]


def test_constants_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And they can be used where gradients are taken, whoever asked first."""
    made: list[int] = []
    plain = torch.tensor

    def tensor(*values: object, **options: object) -> torch.Tensor:
        made.append(1)
        return plain(*values, **options)

    monkeypatch.setattr(torch, "tensor", tensor)
    pre = Preprocess(size=(4, 4), mean=(0.11, 0.2, 0.3))
    pixels = torch.randint(0, 256, (2, 4, 4, 3), dtype=torch.uint8)
    with torch.inference_mode():
        first = normalise(pixels, pre, "cpu")
    again = normalise(pixels, pre, "cpu")
    assert len(made) == 2
    assert torch.equal(first, again)
    weight = torch.ones(1, requires_grad=True)
    (again * weight).sum().backward()
    assert weight.grad is not None
