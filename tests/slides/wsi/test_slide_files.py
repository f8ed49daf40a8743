"""Slides of several files: DICOM, MIRAX and VMS."""

# SPDX-License-Identifier: BSD-3-Clause

import itertools
import shutil
import struct
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    MediaStorageDirectoryStorage,
    RLELossless,
    VLWholeSlideMicroscopyImageStorage,
    generate_uid,
)

from sklearn_pk.slides import SlideTiler, check_slides
from sklearn_pk.slides._wsi._reader import check_slide, fingerprint, open_slide
from sklearn_pk.slides._wsi._slide_files import slide_files

EDGE = 64


def write_level(
    path,
    rgb,
    series,
    *,
    factor=1,
    syntax=JPEGBaseline8Bit,
    sop_class=VLWholeSlideMicroscopyImageStorage,
    **changes,
):
    """Write one level of a DICOM slide of 0.5 um/px."""
    rgb = rgb[::factor, ::factor]
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = sop_class
    meta.MediaStorageSOPInstanceUID = generate_uid()
    file = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID = sop_class
    file.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    file.Modality, file.SeriesInstanceUID, file.StudyInstanceUID = "SM", series, series
    file.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE" if factor == 1 else "RESAMPLED"]
    file.FrameOfReferenceUID = file.ContainerIdentifier = "1.2.3"
    file.Rows = file.Columns = EDGE
    file.TotalPixelMatrixColumns, file.TotalPixelMatrixRows = rgb.shape[1], rgb.shape[0]
    file.ImagedVolumeWidth, file.ImagedVolumeHeight = (n * factor * 5e-4 for n in rgb.shape[1::-1])
    file.SamplesPerPixel, file.PlanarConfiguration = 3, 0
    file.PhotometricInterpretation = "YBR_FULL_422" if syntax == JPEGBaseline8Bit else "RGB"
    file.BitsAllocated = file.BitsStored = 8
    file.HighBit, file.PixelRepresentation = 7, 0
    file.DimensionOrganizationType = "TILED_FULL"
    file.TotalPixelMatrixFocalPlanes = file.NumberOfOpticalPaths = 1
    spacing, groups = Dataset(), Dataset()
    spacing.PixelSpacing = [5e-4 * factor] * 2
    groups.PixelMeasuresSequence = [spacing]
    file.SharedFunctionalGroupsSequence = [groups]
    frames = [
        np.pad(
            rgb[y : y + EDGE, x : x + EDGE],
            ((0, max(0, y + EDGE - rgb.shape[0])), (0, max(0, x + EDGE - rgb.shape[1])), (0, 0)),
        )
        for y in range(0, rgb.shape[0], EDGE)
        for x in range(0, rgb.shape[1], EDGE)
    ]
    file.NumberOfFrames = len(frames)
    if syntax == ExplicitVRLittleEndian:
        file.PixelData = b"".join(frame.tobytes() for frame in frames)
    else:
        file.PixelData = encapsulate([encode_jpeg(frame) for frame in frames])
        file["PixelData"].VR = "OB"
    for name, value in changes.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return str(path)


def write_index(path):
    """Write the table of contents of a folder of DICOM files."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    file = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    file.FileSetID, file.DirectoryRecordSequence = "SLIDES", []
    file.save_as(path, enforce_file_format=True)


def encode_jpeg(frame):
    buffer = BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def series(tmp_path, tissue_rgb):
    """Return the files of a DICOM slide of two levels, in a folder of its own."""
    folder, uid = tmp_path / "series", generate_uid()
    folder.mkdir()
    rgb = tissue_rgb[:256, :320]
    return [write_level(folder / f"{factor}.dcm", rgb, uid, factor=factor) for factor in (1, 2)]


def test_any_file_of_a_series_is_the_slide(series, tissue_rgb):
    folder = str(Path(series[0]).parent)
    slides = [*series, folder]
    for path in slides:
        with open_slide(path) as slide:
            assert slide.level_sizes == ((320, 256), (160, 128))
            found = slide.read(0, 0, 0, 320, 256).astype(int)
        assert np.abs(found - tissue_rgb[:256, :320]).mean() < 8
    assert check_slide(folder).mpp == pytest.approx(0.5)
    assert len({fingerprint(path) for path in slides}) == 1
    tiled = [SlideTiler(tile_size=64).fit_transform([path])[0] for path in slides]
    for other in tiled[1:]:
        np.testing.assert_array_equal(other.coords, tiled[0].coords)
    assert tiled[2].name == "series"
    assert len(list(tiled[2].iter_tiles())) == len(tiled[2])


def test_a_series_that_is_passed_file_by_file(series, cmu_slide):
    with pytest.warns(UserWarning, match="1 slides are passed several times.*one DICOM series"):
        SlideTiler(tile_size=64).fit([*series, cmu_slide])
    with pytest.warns(UserWarning, match="1 slides are passed several times"):
        check_slides([series[0], str(Path(series[0]).parent)], header_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SlideTiler(tile_size=64).fit([series[0], cmu_slide])


def test_all_files_of_a_series_count(series, tissue_rgb):
    before = fingerprint(series[0])
    renamed = shutil.move(series[1], series[1].replace("2.dcm", "other name"))
    assert fingerprint(series[0]) == before
    uid = generate_uid()
    write_level(Path(series[0]).parent / "other.dcm", tissue_rgb[:99, :99], uid)
    assert fingerprint(series[0]) == before
    with pytest.raises(ValueError, match="holds 2 DICOM series"):
        open_slide(str(Path(series[0]).parent))
    Path(renamed).unlink()
    assert fingerprint(series[0]) != before


def test_other_files_of_a_series_and_its_folder(series, tissue_rgb):
    """What is no level does not matter; a level that is not read does."""
    folder, small = Path(series[0]).parent, tissue_rgb[:64, :64]
    uid = dcmread(series[0]).SeriesInstanceUID
    label = {"ImageType": ["ORIGINAL", "PRIMARY", "LABEL", "NONE"]}
    write_level(folder / "label.dcm", small, uid, **label, syntax=ExplicitVRLittleEndian)
    write_index(folder / "DICOMDIR")
    damaged = Path(write_level(folder / "damaged.dcm", small, generate_uid()))
    damaged.write_bytes(damaged.read_bytes()[:400])
    assert check_slide(series[0]).size == (320, 256)
    with pytest.raises(ValueError, match=r"damaged\.dcm"):
        open_slide(str(folder))
    damaged.unlink()
    assert check_slide(str(folder)).size == (320, 256)
    with pytest.raises(ValueError, match=r"DICOMDIR.*another kind \(Media Storage Directory"):
        open_slide(str(folder / "DICOMDIR"))
    write_level(folder / "third.dcm", small, uid, syntax=JPEGLSLossless)
    with pytest.raises(ValueError, match="compressed as JPEG-LS"):
        open_slide(series[0])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"syntax": JPEGLSLossless}, "compressed as JPEG-LS.*dcmdjpls"),
        ({"syntax": RLELossless}, "compressed as RLE.*gdcmconv --raw"),
        ({"BitsAllocated": 16}, "3 samples of 16 bits.*bfconvert .*vips msb OUT"),
        ({"SamplesPerPixel": 1}, "1 samples of 8 bits.*colours of H&E"),
        ({"sop_class": CTImageStorage}, r"another kind \(CT Image Storage\)"),
    ],
)
def test_dicom_that_is_not_read(tmp_path, tissue_rgb, changes, text):
    path = write_level(tmp_path / "a.dcm", tissue_rgb[:99, :99], generate_uid(), **changes)
    with pytest.raises(ValueError, match=rf"a\.dcm.*{text}") as info:
        open_slide(path)
    assert "damaged" not in str(info.value)


def test_plain_and_damaged_dicom(tmp_path, tissue_rgb):
    rgb, options = tissue_rgb[:128, :128], {"syntax": ExplicitVRLittleEndian}
    path = write_level(tmp_path / "a.dcm", rgb, generate_uid(), **options)
    with open_slide(path) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 0, 128, 128), rgb)
    content = Path(path).read_bytes()
    for length in (160, 400, len(content) - 9000):
        Path(path).write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"a\.dcm"):
            check_slide(path)


HOLES = [(0, 0), (1, 0), (0, 1), (1, 1), (3, 2), (4, 0), (4, 1), (4, 2), (4, 3)]


def write_mirax(folder, rgb, holes=HOLES):
    """Write a MIRAX slide of two levels, whose images at `holes` were not scanned."""
    path, parts = folder / "a.mrxs", folder / "a"
    parts.mkdir()
    Image.fromarray(rgb[::8, ::8]).save(path, "JPEG")
    n_rows, n_columns = (length // EDGE for length in rgb.shape[:2])
    data, ini, index = bytearray(16), [], b"01.02UID" + struct.pack("<4i", 16, 0, 24, 0)
    for level, step in enumerate((1, 2)):
        small, entries = np.asarray(Image.fromarray(rgb).reduce(step)), []
        for row, column in itertools.product(range(0, n_rows, step), range(0, n_columns, step)):
            inside = itertools.product(range(column, column + step), range(row, row + step))
            if set(inside) <= set(holes):
                continue
            y, x = (at // step * EDGE for at in (row, column))
            tile, buffer = np.full((EDGE, EDGE, 3), 255, dtype=np.uint8), BytesIO()
            part = small[y : y + EDGE, x : x + EDGE]
            tile[: part.shape[0], : part.shape[1]] = part
            Image.fromarray(tile).save(buffer, "PNG")
            entries += [row * n_columns + column, len(data), buffer.tell(), 0]
            data += buffer.getvalue()
        ini.append(
            f"[LEVEL_{level}]\nOVERLAP_X=0\nOVERLAP_Y=0\nMICROMETER_PER_PIXEL_X={0.5 * step}\n"
            f"MICROMETER_PER_PIXEL_Y={0.5 * step}\nIMAGE_FORMAT=PNG\n"
            f"IMAGE_FILL_COLOR_BGR=16777215\nDIGITIZER_WIDTH={EDGE}\nDIGITIZER_HEIGHT={EDGE}\n"
            f"IMAGE_CONCAT_FACTOR={level}\n"
        )
        # The second level is found by the second of two pointers.
        if level == 1:
            index = index[:20] + struct.pack("<i", len(index)) + index[24:]
        page = [0, len(index) + 8, len(entries) // 4, 0, *entries]
        index += struct.pack(f"<{len(page)}i", *page)
    names = ["HIER_0_NAME=Slide zoom level", "HIER_0_COUNT=2", "INDEXFILE=Index.dat"]
    names += [f"HIER_0_VAL_{level}_SECTION=LEVEL_{level}" for level in (0, 1)]
    general = ["SLIDE_VERSION=01.02", "SLIDE_ID=UID", "OBJECTIVE_MAGNIFICATION=20"]
    general += [f"IMAGENUMBER_X={n_columns}", f"IMAGENUMBER_Y={n_rows}"]
    lines = ["[GENERAL]", *general, "[HIERARCHICAL]", "HIER_COUNT=1", "NONHIER_COUNT=0", *names]
    lines += ["[DATAFILE]", "FILE_COUNT=1", "FILE_0=Data0000.dat", *ini]
    (parts / "Slidedat.ini").write_text("\n".join(lines))
    (parts / "Index.dat").write_bytes(index)
    (parts / "Data0000.dat").write_bytes(data)
    return str(path)


def test_mirax(tmp_path, tissue_rgb):
    rgb = tissue_rgb[:256, :320]
    path, expected = write_mirax(tmp_path, rgb), rgb.copy()
    for column, row in HOLES:
        expected[row * EDGE : (row + 1) * EDGE, column * EDGE : (column + 1) * EDGE] = 255
    with open_slide(path) as slide:
        # Not the preview, which the file itself is.
        assert (slide.library, slide.level_sizes) == ("openslide", ((320, 256), (160, 128)))
        np.testing.assert_array_equal(slide.read(0, 0, 0, 320, 256), expected)
        assert slide.properties["openslide.bounds-width"] == "256"
    assert check_slide(path).mpp == 0.5
    [tiled] = SlideTiler(tile_size=EDGE, tissue=None).fit_transform([path])
    tiles = dict(zip(map(tuple, tiled.coords.tolist()), tiled.iter_tiles(), strict=True))
    assert tiles[192, 128].min() == 255
    np.testing.assert_array_equal(tiles[128, 64], rgb[64:128, 128:192])
    with pytest.raises(ValueError, match="only its preview.*reader='auto'"):
        open_slide(path, "pillow")
    shutil.rmtree(tmp_path / "a")
    for use in (open_slide, fingerprint):
        with pytest.raises(ValueError, match=r"a\.mrxs' has no pixels.*folder 'a' next to it"):
            use(path)


def test_all_files_of_mirax_and_vms_count(tmp_path):
    mirax, vms = tmp_path / "a.mrxs", tmp_path / "b.vms"
    mirax.write_bytes(b"\xff\xd8")
    (tmp_path / "a").mkdir()
    vms.write_text("[Virtual Microscope Specimen]\nImageFile=b(1).jpg\nMapFile=map.jpg\nX=\n")
    parts = {
        str(mirax): [tmp_path / "a" / name for name in ("Slidedat.ini", "Data0000.dat")],
        str(vms): [tmp_path / "b(1).jpg", tmp_path / "map.jpg"],
    }
    for path, others in parts.items():
        for part in others:
            part.write_bytes(b"1")
        assert set(slide_files(path)) == {path, *map(str, others)}
        for part in others:
            before = fingerprint(path)
            part.write_bytes(b"22")
            assert fingerprint(path) != before
