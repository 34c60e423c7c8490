"""Chat templates: from messages to the prompt's text, as transformers renders it.

A template comes with the model, from strangers: it runs in jinja2's immutable sandbox, which reaches no attribute that
could leave it, and within the limits of `template_limits`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, NoReturn

from node.errors import BadRequest, DamagedModel
from node.models.template_limits import (
    TemplateTooLong,
    bounded_environment,
    bounded_filter,
    bounded_time,
    joined,
)

if TYPE_CHECKING:
    from jinja2 import Environment

Message = Mapping[str, object]


def compile_template(text: str, where: str) -> Callable[[Sequence[Message], Mapping[str, str]], str]:
    """A function from (messages, special tokens by name) to the prompt's text, which ends where the answer begins.

    Raises:
        DamagedModel: the text is no template. The function raises BadRequest where the template refuses the messages.
    """
    from jinja2 import TemplateError

    try:
        template = _environment().from_string(text)
    except (TemplateError, RecursionError, ValueError, OverflowError, MemoryError) as error:
        raise DamagedModel(where, f"the chat template cannot be read ({error})") from error
    template.root_render_func.__globals__["str_join"] = joined  # what `~` is compiled to
    filename = template.root_render_func.__code__.co_filename

    def render(messages: Sequence[Message], special_tokens: Mapping[str, str]) -> str:
        try:
            with bounded_time(filename):
                return template.render(messages=list(messages), add_generation_prompt=True, **special_tokens)
        except TemplateTooLong:
            raise BadRequest("messages", "the model's chat template does not come to an end with them") from None
        except (
            MemoryError,
            TemplateError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise BadRequest("messages", f"the model's chat template does not take them ({error})") from error

    return render


def _environment() -> Environment:
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's words for training; here it is merely read over."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def strftime_now(layout: str) -> str:
        return datetime.now().strftime(layout)

    def tojson(value: object, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)  # jinja2's own escapes for HTML

    environment: Environment = bounded_environment(ImmutableSandboxedEnvironment)(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    for name in ("center", "indent", "batch", "slice", "format"):
        environment.filters[name] = bounded_filter(environment.filters[name])
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment
