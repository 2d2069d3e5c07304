"""Takes the picture of the page that the README shows, of a service that is running.

    python -m elq_jax.serve --linker runs/demo/linker &
    python -m benchmarks.page_picture http://127.0.0.1:8000 docs/images/page.png

Needs the packages of requirements-extras.txt, and Chromium.
"""

from __future__ import annotations

import io
import pathlib
import shutil
import sys

QUESTION = "did paris and helen of troy live in greece or in paris?"
SIZE = {"width": 1000, "height": 900}
COLOURS = 256  # A palette makes the file small.


def main(address: str, output: str, question: str = QUESTION) -> None:
    """Links a question on the page, opens the candidates of its first link, and takes a picture."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport=SIZE, device_scale_factor=2, reduced_motion="reduce")
        page.goto(address)
        page.fill("#text", question)
        page.press("#text", "Enter")
        page.hover(".mark")
        page.evaluate("window.scrollTo(0, 0)")
        page.wait_for_selector("#candidates .description:not(:empty)")
        page.wait_for_load_state("networkidle")
        picture = Image.open(io.BytesIO(page.screenshot()))
        browser.close()
    pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
    picture.convert("RGB").quantize(COLOURS).save(output, optimize=True)
    print(f"{output}: {pathlib.Path(output).stat().st_size:,} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
