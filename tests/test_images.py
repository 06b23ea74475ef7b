"""Pictures of all kinds: their colors, their transparency, and that a picture's edit is a picture."""

from __future__ import annotations

import warnings
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageCms

from rvedit.editing.edit_file import default_output
from rvedit.io.errors import UserError
from rvedit.io.video import VideoReader, probe

TILES = Path(__file__).parent / "assets" / "tiles.avif"  # 128 x 128 in four tiles: red, green, blue, yellow
GREEN, MAGENTA = (30, 120, 30), (255, 0, 255)


def read(path: Path) -> np.ndarray:
    """The only frame, and nothing to say of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with VideoReader(path) as reader:
            return next(iter(reader)).frame.astype(int)


def read_with_warnings(path: Path) -> tuple[np.ndarray, list[str]]:
    """The first frame, and what is said while the clip is read twice."""
    with warnings.catch_warnings(record=True) as caught, VideoReader(path) as reader:
        warnings.simplefilter("always")
        frames = [timed.frame for _ in range(2) for timed in reader]
    return frames[0].astype(int), [str(warning.message) for warning in caught]


def ramp(width: int = 16, height: int = 16) -> np.ndarray:
    """A picture (h w 3) from 0 to 1, of many colors."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return np.stack([x, y, 1 - x], axis=-1)


def exchanged_profile() -> bytes:
    """SRGB's profile with the colorants of red and green exchanged."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"tXYZ").replace(b"gXYZ", b"rXYZ").replace(b"tXYZ", b"gXYZ")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tiff", "a.avif", "palette.png"])
def test_a_color_profile_is_applied(tmp_path, name):
    image = Image.new("RGB", (16, 16), (220, 60, 30))
    image = image.convert("P", palette=Image.Palette.ADAPTIVE) if name == "palette.png" else image
    image.save(tmp_path / name, quality=100, icc_profile=exchanged_profile())
    assert np.abs(read(tmp_path / name) - (60, 220, 30)).max() <= 3


def test_a_profile_of_srgb_changes_nothing(tmp_path):
    pixels = np.round(ramp() * 255).astype(np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=profile)
    assert (read(tmp_path / "a.png") == pixels).all()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_profile_that_is_broken_or_does_not_fit_is_ignored_with_one_warning(tmp_path, mode):
    profile = exchanged_profile()
    for number in range(3):
        picture = Image.new("RGB", (16, 16), (220, 60, 30)).convert(mode)
        picture.save(tmp_path / f"{number}.png", icc_profile=profile if mode == "L" else profile[:200])
    frame, said = read_with_warnings(tmp_path)
    assert (frame == np.asarray(picture.convert("RGB"))).all()
    assert len(said) == 1
    assert str(tmp_path) in said[0]
    assert "profile" in said[0]


@pytest.mark.parametrize("codec", ["png", "tiff"])
@pytest.mark.parametrize("pix_fmt", ["rgb48", "gray16"])
def test_sixteen_bits_are_scaled(tmp_path, codec, pix_fmt):
    pixels = np.round((ramp() if pix_fmt == "rgb48" else ramp()[..., 0]) * 65535).astype(np.uint16)
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height = 16, 16
    encoder.pix_fmt = pix_fmt + ("be" if codec == "png" else "le")
    encoder.time_base = 1
    frame = av.VideoFrame.from_ndarray(pixels, format=encoder.pix_fmt)
    path = tmp_path / f"a.{codec}"
    path.write_bytes(b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)]))
    expected = pixels if pixels.ndim == 3 else pixels[..., None]
    assert np.abs(read(path) - expected / 257).max() <= 1


@pytest.mark.parametrize(("white", "dtype"), [(1, np.float32), (65535, np.int32)])
def test_thirty_two_bits_are_scaled(tmp_path, white, dtype):
    values = ramp()[..., 0] * white
    Image.fromarray(values.astype(dtype)).save(tmp_path / "a.tiff")
    assert np.abs(read(tmp_path / "a.tiff")[..., 1] - values * (255 / white)).max() <= 1


@pytest.mark.parametrize(("white", "dtype"), [(255, np.float32), (65535, np.float32), (255, np.int32)])
def test_thirty_two_bits_of_another_range_are_scaled_with_a_warning(tmp_path, white, dtype):
    values = ramp()[..., 0] * white
    Image.fromarray(values.astype(dtype)).save(tmp_path / "a.tiff")
    frame, said = read_with_warnings(tmp_path / "a.tiff")
    assert np.abs(frame[..., 1] - values * (255 / white)).max() <= 1
    assert len(said) == 1
    assert f"{white} is white" in said[0]


@pytest.mark.parametrize("value", [-0.5, 1e6, np.nan])
def test_numbers_of_no_known_range_are_refused(tmp_path, value):
    values = ramp()[..., 0].astype(np.float32)
    values[0, 0] = value
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match=r"a\.tiff: its values run from .*: save it with 8 or 16 bits"):
        read(tmp_path / "a.tiff")


def test_inks_and_lab_colors_are_read(tmp_path):
    image = Image.fromarray(np.round(ramp() * 255).astype(np.uint8))
    image.convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read(tmp_path / "a.jpg") - np.asarray(image)).mean() < 3
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB").save(tmp_path / "a.tiff")
    assert np.abs(read(tmp_path / "a.tiff") - np.asarray(image)).mean() < 3


def transparent(mode: str) -> Image.Image:
    """The left half is green, the right one transparent and magenta."""
    image = Image.new("RGBA", (16, 8), (*MAGENTA, 0))
    image.paste((*GREEN, 255), (0, 0, 8, 8))
    return image.quantize(4) if mode == "P" else image.convert(mode)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("a.png", "RGBA"),
        ("a.png", "LA"),
        ("a.png", "P"),
        ("a.webp", "RGBA"),
        ("a.tiff", "RGBA"),
        ("a.avif", "RGBA"),
    ],
)
def test_transparent_parts_are_black_with_one_warning(tmp_path, name, mode):
    options = {"lossless": True, "exact": True} if name == "a.webp" else {}
    transparent(mode).save(tmp_path / name, **options)
    frame, said = read_with_warnings(tmp_path / name)
    assert frame[:, 8:].max() <= 2
    expected = (83, 83, 83) if mode == "LA" else GREEN  # the green's brightness
    assert np.abs(frame[:, :7] - expected).max() <= 6
    assert len(said) == 1
    assert "transparent parts are shown over black" in said[0]


def test_a_color_that_stands_for_transparency(tmp_path):
    Image.new("RGB", (8, 8), MAGENTA).save(tmp_path / "a.png", transparency=MAGENTA)
    assert read_with_warnings(tmp_path / "a.png")[0].max() == 0


def test_half_transparent_colors_are_darkened(tmp_path):
    Image.new("RGBA", (8, 8), (200, 100, 50, 128)).save(tmp_path / "a.png")
    frame, _ = read_with_warnings(tmp_path / "a.png")
    assert np.abs(frame - (100, 50, 25)).max() <= 1


def test_a_folder_of_transparent_pictures_has_one_warning(tmp_path):
    for number in range(3):
        transparent("RGBA").save(tmp_path / f"{number}.png")
    frame, said = read_with_warnings(tmp_path)
    assert frame[:, 8:].max() == 0
    assert len(said) == 1


def test_an_opaque_alpha_channel_is_nothing_to_say(tmp_path):
    Image.new("RGBA", (8, 8), (*GREEN, 255)).save(tmp_path / "a.png")
    assert (read(tmp_path / "a.png") == GREEN).all()


def test_a_picture_in_tiles_is_whole_or_refused(tmp_path):
    frame = read(TILES)
    assert frame.shape == (128, 128, 3)
    corners = frame[[16, 16, 112, 112], [16, 112, 16, 112]]
    assert np.abs(corners - [(220, 30, 30), (30, 200, 30), (30, 30, 220), (200, 200, 30)]).max() < 12
    tiles = TILES.read_bytes()
    (tmp_path / "b.heic").write_bytes(tiles)  # by its content, not its name
    assert read(tmp_path / "b.heic").shape == (128, 128, 3)
    # Pillow reads no HEIC, and PyAV one tile of it.
    (tmp_path / "a.heic").write_bytes(tiles.replace(b"avif", b"heic", 1).replace(b"avif", b"mif1"))
    with pytest.raises(UserError, match=r"a\.heic: a picture in 4 tiles; convert it to \.png"):
        probe(tmp_path / "a.heic")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".avif"])
def test_an_animated_picture_is_refused(tmp_path, suffix):
    first, second = Image.new("RGB", (16, 16), GREEN), Image.new("RGB", (16, 16), MAGENTA)
    first.save(tmp_path / f"a{suffix}", save_all=True, append_images=[second], duration=100)
    with pytest.raises(UserError, match="an animated image; convert it to"):
        probe(tmp_path / f"a{suffix}")


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("photo.webp", "photo_edited.png"),
        ("photo.avif", "photo_edited.png"),
        ("photo.heic", "photo_edited.png"),
        ("photo.tiff", "photo_edited.png"),
        ("photo.bmp", "photo_edited.png"),
        ("photo.jp2", "photo_edited.png"),
        ("photo.ppm", "photo_edited.png"),
        ("photo.JPG", "photo_edited.jpg"),
    ],
)
def test_the_edit_of_a_picture_is_a_picture(tmp_path, name, output):
    path = tmp_path / name
    picture = Image.fromarray(np.round(ramp() * 255).astype(np.uint8))
    picture.save(path, format="AVIF" if path.suffix == ".heic" else None)
    assert np.abs(read(path) - ramp() * 255).mean() < 12
    assert default_output(probe(path)) == Path(output)


def test_the_edit_of_a_folder_of_pictures_is_a_video(tmp_path):
    for number in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    assert default_output(probe(tmp_path)).suffix == ".mp4"
