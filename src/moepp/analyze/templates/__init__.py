"""The pages' HTML, CSS and JavaScript, and how they become one file.

A page is one template that extends ``base.html.jinja``; styles and scripts are included as they are, so that the file
needs nothing beside it. Everything that is filled in is escaped unless a template says otherwise.
"""

from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """The text of a page."""
    environment = Environment(
        loader=PackageLoader("moepp.analyze", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def read(name: str) -> str:
    """A style or script as it is."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
