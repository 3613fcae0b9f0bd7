"""Views of the 3D objects that `lite` is trained on: pictures without a background.

python bench/objects_views.py LIBRARIES OUT      (make runs/objects/items.jsonl)

LIBRARIES holds furniture libraries of Sweet Home 3D (*.sh3f, archives of OBJ models with names,
categories and tags), as the Debian package `sweethome3d-furniture` brings them: CC BY 3.0 and CC0,
see its copyright file. OUT gets objects.json and six WebP pictures a model.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import vtk
from PIL import Image
from vtk.util.numpy_support import vtk_to_numpy

LIBRARIES = ("BlendSwap-CC-0", "BlendSwap-CC-BY", "KatorLegaz", "Scopia", "Reallusion")
RECORDS = "PluginFurnitureCatalog.properties"
SIDE = 288  # px; drawn at twice this, for smooth edges
AZIMUTHS = (0, -35, 35, -70, 70, 180)  # degrees, each up to 15 off
LARGEST = 25_000_000  # bytes of a model


def read_library(archive: Path, out: Path) -> list[dict[str, str]]:
    """Unpack a library; its models as {"id", "name", "category", "tags", "model"}."""
    folder = out / archive.stem
    with zipfile.ZipFile(archive) as library:
        library.extractall(folder)  # refuses names outside of it
    fields: dict[int, dict[str, str]] = {}
    for line in (folder / RECORDS).read_text(encoding="latin-1").splitlines():
        if found := re.match(r"(\w+)#(\d+)=(.*)", line):
            fields.setdefault(int(found[2]), {})[found[1]] = found[3]
    return [
        {
            "id": f"{archive.stem}-{number}",
            "name": said["name"],
            "category": said.get("category", ""),
            "tags": said.get("tags", ""),
            "model": str(folder / said["model"].lstrip("/")),
        }
        for number, said in sorted(fields.items())
        if said.get("model", "").endswith(".obj")
    ]


def draw(entry: dict[str, str], out: Path) -> str | None:
    """Write a model's views, id_0.webp to id_5.webp; why that failed, or None."""
    file = Path(entry["model"])
    if not file.exists() or not 0 < file.stat().st_size < LARGEST:
        return f"{file.name}: missing, empty or too large"
    rng = np.random.default_rng(zlib.crc32(entry["id"].encode()))
    scene, window = _scene(file)
    if not scene.GetActors().GetNumberOfItems():
        return f"{file.name}: nothing to be seen"
    bounds = scene.ComputeVisiblePropBounds()
    centre = np.array([(bounds[i] + bounds[i + 1]) / 2 for i in (0, 2, 4)])
    for number, azimuth in enumerate(AZIMUTHS):
        _look(scene, centre, azimuth, rng)
        window.Render()
        pixels = Image.fromarray(_pixels(window), "RGBA")
        pixels.resize((SIDE, SIDE), Image.Resampling.LANCZOS).save(
            out / f"{entry['id']}_{number}.webp", quality=92
        )
    window.Finalize()
    return None


def drawn(entry: dict[str, str], out: Path) -> str:
    """`draw` in a process of its own, as VTK keeps textures, and crashes on some models."""
    command = [sys.executable, __file__, "--one", json.dumps(entry), str(out)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else f"ended by {done.returncode}"


def _scene(file: Path) -> tuple[Any, Any]:
    """A renderer with the model in it, and its window, which is on no screen."""
    scene, window = vtk.vtkRenderer(), vtk.vtkRenderWindow()
    window.SetOffScreenRendering(1)
    window.SetAlphaBitPlanes(1)
    window.SetMultiSamples(0)
    window.SetSize(2 * SIDE, 2 * SIDE)
    window.AddRenderer(scene)
    scene.SetBackgroundAlpha(0.0)
    scene.SetBackground(1, 1, 1)
    scene.SetUseDepthPeeling(1)
    scene.SetMaximumNumberOfPeels(8)
    scene.AutomaticLightCreationOff()
    reader = vtk.vtkOBJImporter()
    reader.SetFileName(str(file))
    if (materials := _materials(file)) is not None:
        reader.SetFileNameMTL(str(materials))
    reader.SetTexturePath(str(file.parent))
    reader.SetRenderWindow(window)
    reader.Update()
    actors = scene.GetActors()
    actors.InitTraversal()
    for _ in range(actors.GetNumberOfItems()):
        actor = actors.GetNextActor()
        surface = actor.GetProperty()
        surface.SetInterpolationToPhong()
        surface.BackfaceCullingOff()
        surface.SetAmbient(0.35)
        surface.SetDiffuse(0.75)
        surface.SetAmbientColor(surface.GetDiffuseColor())
        if actor.GetTexture():
            surface.SetColor(1, 1, 1)
            actor.GetTexture().InterpolateOn()
            actor.GetTexture().MipmapOn()
    return scene, window


def _materials(file: Path) -> Path | None:
    with file.open(encoding="latin-1") as lines:
        for line in lines:
            if line.startswith("mtllib"):
                named = file.parent / line.split(None, 1)[1].strip()
                return named if named.exists() else None
            if line.startswith("f "):
                return None
    return None


def _look(scene: Any, centre: np.ndarray, azimuth: float, rng: np.random.Generator) -> None:
    """Place the camera near an azimuth, and two lights."""
    turn = np.radians(azimuth + rng.uniform(-15, 15))
    rise = np.radians(rng.uniform(8, 38))
    toward = np.array([np.sin(turn) * np.cos(rise), np.sin(rise), np.cos(turn) * np.cos(rise)])
    camera = scene.GetActiveCamera()
    camera.SetFocalPoint(*centre)
    camera.SetPosition(*(centre + toward))
    camera.SetViewUp(0, 1, 0)
    camera.SetViewAngle(rng.uniform(18, 34))
    scene.ResetCamera()
    camera.Zoom(1.1)
    scene.RemoveAllLights()
    main = rng.normal(0, 0.6, 3) + toward + np.array([0, 0.8, 0])
    filling = rng.normal(0, 1, 3) + np.array([0, 0.5, 0])
    for strength, direction in ((0.75, main), (0.3, filling)):
        light = vtk.vtkLight()
        light.SetLightTypeToSceneLight()
        light.SetPositional(0)
        light.SetPosition(*(centre + 1000 * direction / np.linalg.norm(direction)))
        light.SetFocalPoint(*centre)
        light.SetIntensity(strength)
        scene.AddLight(light)
    scene.ResetCameraClippingRange()


def _pixels(window: Any) -> np.ndarray:
    shot = vtk.vtkWindowToImageFilter()
    shot.SetInput(window)
    shot.SetInputBufferTypeToRGBA()
    shot.ReadFrontBufferOff()
    shot.Update()
    image = shot.GetOutput()
    width, height, _ = image.GetDimensions()
    pixels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, 4)
    return np.ascontiguousarray(pixels[::-1])


def main(libraries: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    found = (libraries / f"{name}.sh3f" for name in LIBRARIES)
    entries = [entry for archive in found for entry in read_library(archive, out / "models")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for entry, failed in zip(entries, pool.map(partial(drawn, out=out), entries), strict=True):
            if failed:
                print(f"{entry['id']}: {failed}")
    told = ("id", "name", "category", "tags")
    records = [{name: entry[name] for name in told} for entry in entries]
    (out / "objects.json").write_text(json.dumps(records))


if __name__ == "__main__":
    vtk.vtkObject.GlobalWarningDisplayOff()
    if sys.argv[1] == "--one":
        print(draw(json.loads(sys.argv[2]), Path(sys.argv[3])) or "")
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
