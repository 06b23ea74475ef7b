"""Self-contained HTML pages: a template and its data, without network or other files."""

from __future__ import annotations

import base64
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader
from PIL import Image

from rvedit.io.manifest import write_text


def write_page(path: Path, package: str, template: str, data: Any) -> None:
    """Render a template of a package with `data`, which it inserts as JSON by `{{ data | tojson }}`.

    Jinja's filter escapes tags, so that none in a prompt or a reply takes effect. A template may include
    others of its package.
    """
    folder = files(package)
    loader = FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8"))
    environment = Environment(autoescape=True, loader=loader)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    write_text(path, environment.get_template(template).render(data=data))


def jpeg_url(image: Image.Image, quality: int) -> str:
    """Return an image as a data URL."""
    buffer = BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
