"""The demo, a page in the browser: drop an image, write sentences, compare their masks and maps."""

from __future__ import annotations

import base64
import html
import io
import ipaddress
import socket
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ris_pipeline.arrays import Pixels
from ris_pipeline.chain.checkpoints import load_segmenter
from ris_pipeline.chain.context import Context
from ris_pipeline.errors import RisError

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request as HttpRequest

    from ris_pipeline.predict import Prediction, Segmenter

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")  # as browsers write it into a request
MAX_BYTES = 50_000_000
MAX_SENTENCES = 20
LONGEST_SIDE = 1024  # pixels; larger images are scaled down, the page shows no more
# The page loads its own two files and shows the pictures it is sent; nothing comes from elsewhere.
POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data: blob:"


@dataclass(frozen=True, slots=True)
class Demo:
    """The server of the page, the socket to run it on, and where it is found."""

    server: uvicorn.Server
    listener: socket.socket
    url: str
    is_local: bool  # whether only this computer reaches it

    def run(self) -> None:
        """Serve until it is interrupted."""
        with suppress(KeyboardInterrupt):
            self.server.run(sockets=[self.listener])


def build_demo(context: Context, host: str, port: int, checkpoint: Path | None, *, upright: bool = True) -> Demo:
    """Return the demo on an address; port 0 takes a free one.

    `checkpoint`: as of `chain.checkpoints.load_segmenter`. `upright`: turn photographs as their EXIF data say.
    Raises RisError where its packages are missing, and where it cannot listen there.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise RisError("the demo is an extra: pip install -c constraints.txt -e '.[demo]'") from error
    segmenter = load_segmenter(context, checkpoint)
    network = str(checkpoint or f"the CLIP of {context.card.name} alone, as nothing is trained yet")
    is_local = _is_loopback(host)
    app = build_app(segmenter, network, LOOPBACK if is_local else ("*",), upright=upright)
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise RisError(f"{host}:{port}: cannot listen there: {error.strerror}; choose another --port") from error
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    return Demo(uvicorn.Server(uvicorn.Config(app, log_level="warning")), listener, url, is_local)


def build_app(segmenter: Segmenter, network: str, hosts: Sequence[str], *, upright: bool = True) -> Starlette:
    """Return the web application: the page, and POST /segment?sentence=…&sentence=… with an image as its body.

    POST /picture gives the image as it is read: a browser would turn it, which it is not where `upright` is false.
    A request to any other host than `hosts` is refused, so that a foreign page cannot reach it by a name of its own.
    """
    import PIL.Image
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    alone = threading.Lock()

    def compute(data: bytes, sentences: list[str]) -> dict[str, Any]:
        image = read_image(data, upright=upright)
        with alone, warnings.catch_warnings(action="ignore", category=UserWarning):  # the page says it
            predictions = segmenter(image, sentences)
        return {
            "results": [describe(*pair) for pair in zip(sentences, predictions, strict=True)],
            "remark": "; ".join(segmenter.describe_unread(sentences)),
        }

    async def segment(request: HttpRequest) -> Response:
        try:
            sentences = check_sentences(request.query_params.getlist("sentence"))
            data = await _read_body(request)
            return JSONResponse(await run_in_threadpool(compute, data, sentences))
        except RisError as error:
            return JSONResponse({"error": str(error)}, 400)

    async def show(request: HttpRequest) -> Response:
        try:
            pixels = await run_in_threadpool(read_image, await _read_body(request), upright=upright)
            return Response(_to_png(PIL.Image.fromarray(pixels)), media_type="image/png")
        except RisError as error:
            return JSONResponse({"error": str(error)}, 400)

    def serve(name: str, media_type: str) -> Route:
        text = resources.files("ris_pipeline.demo").joinpath(name).read_text(encoding="utf-8")
        text = text.replace("{{network}}", html.escape(network)).replace("{{orientation}}", "" if upright else "raw")
        headers = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"}

        async def answer(request: HttpRequest) -> Response:
            return Response(text, media_type=media_type, headers=headers)

        return Route("/" if name == "index.html" else f"/{name}", answer)

    pages = [serve("index.html", "text/html"), serve("page.css", "text/css"), serve("page.js", "text/javascript")]
    guard = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    posts = [Route("/segment", segment, methods=["POST"]), Route("/picture", show, methods=["POST"])]
    return Starlette(routes=[*pages, *posts], middleware=[guard])


async def _read_body(request: HttpRequest) -> bytes:
    # A form of a foreign page can send a body, but not of this type.
    if request.headers.get("content-type") != "application/octet-stream":
        raise RisError("send the image as application/octet-stream")
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > MAX_BYTES:
            raise RisError(f"the image has more than {MAX_BYTES / 1e6:.0f} MB; scale it down")
    return bytes(data)


def check_sentences(sentences: list[str]) -> list[str]:
    """Return the sentences, stripped. Raises RisError for an empty one, for none, and for too many."""
    stripped = [sentence.strip() for sentence in sentences]
    if not all(stripped) or not 0 < len(stripped) <= MAX_SENTENCES:
        raise RisError(f"write one to {MAX_SENTENCES} sentences, none of them empty")
    return stripped


def read_image(data: bytes, *, upright: bool = True) -> Pixels:
    """Return the image in a file's bytes, uint8 (H, W, 3) RGB, at most 1,024 pixels a side.

    `upright`: turned as its EXIF data say, as browsers do.
    """
    import numpy as np
    import PIL.Image

    from ris_pipeline.datasets.io.files import MAX_PIXELS, to_rgb

    try:
        with PIL.Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise RisError(f"the image has more than {MAX_PIXELS:,} pixels; scale it down")
            image = PIL.Image.fromarray(to_rgb(picture, upright=upright))
    except (OSError, SyntaxError, ValueError, EOFError, PIL.Image.DecompressionBombError) as error:
        raise RisError("not a readable image; PNG, JPEG and WebP are") from error
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    return np.asarray(image)


def describe(sentence: str, prediction: Prediction) -> dict[str, Any]:
    """Return what the page shows of a prediction: mask (opaque on the object) and map as data URLs, its share."""
    import numpy as np
    from PIL import Image

    from ris_pipeline.pictures import colour_map

    alpha = Image.fromarray(prediction.mask.astype(np.uint8) * 255)
    return {
        "sentence": sentence,
        "share": round(float(prediction.mask.mean()), 6),
        "mask": _to_url(Image.merge("LA", (alpha, alpha))),
        "map": _to_url(Image.fromarray(colour_map(prediction.map))),
    }


def _to_url(picture: Any) -> str:
    return f"data:image/png;base64,{base64.b64encode(_to_png(picture)).decode()}"


def _to_png(picture: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, format="PNG")
    return file.getvalue()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
