"""What the page is told about a linker. The page itself is tested in test_page.py."""

import math
import pathlib

import pytest

from elq_jax import LinkingSettings
from elq_jax.entities.build import build_catalogue
from elq_jax.entities.catalogue import Catalogue
from elq_jax.serving.page_route import EXAMPLES, examples_of, slider_of

DEMO = pathlib.Path(__file__).parents[2] / "demo" / "catalogue.jsonl"


def test_examples_are_about_entities_of_the_catalogue(tmp_path):
    build_catalogue(DEMO, tmp_path / "demo.arrow")
    assert examples_of(Catalogue.open(tmp_path / "demo.arrow")) == [text for text, _ in EXAMPLES]
    lines = ['{"title": "Phone 7 (blue)", "text": ""}', '{"title": "Case", "text": ""}']
    (tmp_path / "products.jsonl").write_text("\n".join(lines) + "\n")
    build_catalogue(tmp_path / "products.jsonl", tmp_path / "products.arrow")
    own = Catalogue.open(tmp_path / "products.arrow")
    assert examples_of(own) == ["tell me about Phone 7", "tell me about Case"]


@pytest.mark.parametrize(
    ("changes", "name", "start", "filters"),
    [
        ({"decoder": "confidence", "threshold": math.log(0.519)}, "min_probability", 0.52, True),
        ({"decoder": "confidence", "threshold": -1e-9}, "min_probability", 0.99, True),
        ({"decoder": "confidence", "threshold": -math.inf}, "min_probability", 0.0, True),
        ({"threshold": -1.84}, "threshold", -1.8, True),
        ({"threshold": -0.01}, "threshold", -0.1, True),
        ({"threshold": -25.0}, "threshold", -25.0, True),
        ({"threshold": -math.inf}, "threshold", -10.0, True),
        (
            {
                "decoder": "elq_jax.original.decoding:original",
                "threshold_type": "top_entity_by_mention",
                "mention_threshold": -0.7,
                "threshold": 3.0,
            },
            "threshold",
            3.0,
            False,
        ),
    ],
)
def test_the_slider_begins_at_the_threshold_of_the_linker(changes, name, start, filters):
    slider = slider_of(LinkingSettings().replace(**changes))
    assert (slider["name"], slider["start"], slider["filters"]) == (name, start, filters)
    assert slider["lowest"] <= slider["start"] <= slider["highest"]
    for value in (slider["lowest"], slider["highest"]):
        LinkingSettings().replace(**(changes | {"threshold": -1.0})).at(**{name: value})
    steps = (slider["start"] - slider["lowest"]) / slider["step"]
    assert steps == pytest.approx(round(steps), abs=1e-6)
