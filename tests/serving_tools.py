"""Questions, and ways to ask an application in this process."""

import asyncio
import json

QUESTIONS = [
    "who wrote dune?",
    "what is the capital of france and of the united kingdom?",
    "when was abraham lincoln shot",
    "",
    "x",
    "the beatles, queen and abba",
    "naïve café 😀 in münchen",
]


def in_process(app, scenario):
    """Runs `scenario(client)` against an application in this process, without warming up."""
    import httpx

    async def main():
        await app.state.service.start(warm=False)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await scenario(client)
        finally:
            await app.state.service.stop()

    return asyncio.run(main())


def places(links):
    """Start, end and row of links, as JSON or as objects."""
    if links and not isinstance(links[0], dict):
        links = [link.to_dict() for link in links]
    return [(link["start"], link["end"], link["row"]) for link in links]


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
