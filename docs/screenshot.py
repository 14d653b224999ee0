"""The README's picture of the page: asks a running server one question in a real browser and saves what one sees.

python docs/screenshot.py http://127.0.0.1:8000 --prompt "What is the capital of France?" --out docs/page.png
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright


def take(page: Page, prompts: list[str], model: str | None) -> None:
    """Chooses the model, sends each prompt and waits for its answer."""
    page.wait_for_selector("#model:not([hidden])")
    if model is not None:
        page.select_option("#model", model)
    for count, prompt in enumerate(prompts):
        page.fill("#composer textarea", prompt)
        page.press("#composer textarea", "Enter")
        page.locator(".turn.assistant .meta").nth(count).wait_for()
    page.locator("#composer textarea").blur()
    page.mouse.move(0, 0)
    page.evaluate("document.fonts.ready.then(() => true)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="address of a running server")
    parser.add_argument("--prompt", action="append", help="what to ask; may be given several times")
    parser.add_argument("--model", help="the model to choose; the first one where it is left out")
    parser.add_argument("--out", type=Path, default=Path("docs/page.png"))
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--language", default="en-US", help="the browser's language, such as zh-CN")
    parser.add_argument("--size", default="1200x760", help="CSS pixels; the picture has twice as many")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        print("no chromium on this machine: install it, then run this again", file=sys.stderr)
        return 1
    width, height = (int(part) for part in arguments.size.split("x"))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": width, "height": height},
            device_scale_factor=2,
            color_scheme="dark" if arguments.dark else "light",
            locale=arguments.language,
        )
        page.set_default_timeout(180_000)
        page.goto(arguments.url)
        take(page, arguments.prompt or ["What is the capital of France?"], arguments.model)
        page.screenshot(path=arguments.out)
        browser.close()
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
