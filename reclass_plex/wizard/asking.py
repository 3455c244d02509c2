"""Questions to the user: on a terminal, or answered by the defaults where nobody is there."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol

from rich.prompt import Confirm, Prompt
from rich.text import Text

from reclass_plex import console
from reclass_plex.errors import ConfigError, visible


class Ask(Protocol):
    """How questions reach the user.

    `option` is what answers a question on the command line, where nothing but the user can: such
    a question has no default for scripts.
    """

    def say(self, text: str) -> None:
        """Tell something."""

    def text(self, question: str, default: str = "", *, option: str = "") -> str:
        """Ask for a line; the default is what Enter means."""

    def confirm(self, question: str, default: bool = True, *, option: str = "") -> bool:
        """Ask for yes or no."""

    def choose(
        self,
        question: str,
        choices: Sequence[str],
        default: Sequence[int] = (0,),
        *,
        several: bool = False,
        option: str = "",
    ) -> tuple[int, ...]:
        """Ask for one of the choices, or for `several`; return their indexes, at least one."""


class Terminal:
    """Asks on the terminal. Raises ConfigError when the input ends."""

    def say(self, text: str) -> None:
        """Tell something."""
        console.say(text, to=console.err)

    def text(self, question: str, default: str = "", *, option: str = "") -> str:
        """Ask for a line; the default is what Enter means."""
        try:
            answer = Prompt.ask(
                Text(visible(question)),
                console=console.err,
                default=default,
                show_default=default != "",
            )
        except EOFError:
            raise ConfigError("the input ended before the last answer") from None
        return answer.strip()

    def confirm(self, question: str, default: bool = True, *, option: str = "") -> bool:
        """Ask for yes or no."""
        try:
            return Confirm.ask(Text(visible(question)), console=console.err, default=default)
        except EOFError:
            raise ConfigError("the input ended before the last answer") from None

    def choose(
        self,
        question: str,
        choices: Sequence[str],
        default: Sequence[int] = (0,),
        *,
        several: bool = False,
        option: str = "",
    ) -> tuple[int, ...]:
        """Ask for one of the choices, or for `several`; return their indexes, at least one."""
        self.say(question)
        for number, choice in enumerate(choices, 1):
            self.say(f"  {number}  {choice}")
        usual = ",".join(str(index + 1) for index in default)
        while True:
            answer = self.text("Numbers, 1,2 for instance" if several else "Number", usual)
            chosen = _parse_numbers(answer, len(choices))
            if chosen and (several or len(chosen) == 1):
                return chosen
            what = "numbers" if several else "one number"
            self.say(f"Please type {what} from 1 to {len(choices)}.")


class Unattended:
    """Answers by the defaults, for scripts. Raises ConfigError where there can be none."""

    def __init__(self, say: Callable[[str], object], *, yes: bool = False) -> None:
        self._say = say
        self._yes = yes

    def say(self, text: str) -> None:
        """Tell something."""
        self._say(text)

    def text(self, question: str, default: str = "", *, option: str = "") -> str:
        """Return the default."""
        self._refuse(question, option)
        return default

    def confirm(self, question: str, default: bool = True, *, option: str = "") -> bool:
        """Return the default, or yes for what --yes allows."""
        if option == "--yes" and self._yes:
            return True
        self._refuse(question, option)
        return default

    def choose(
        self,
        question: str,
        choices: Sequence[str],
        default: Sequence[int] = (0,),
        *,
        several: bool = False,
        option: str = "",
    ) -> tuple[int, ...]:
        """Return the default."""
        self._refuse(question, option)
        return tuple(default)

    def _refuse(self, question: str, option: str) -> None:
        if option:
            raise ConfigError(f"{question} There is nobody to ask: add {option}")


def _parse_numbers(text: str, count: int) -> tuple[int, ...]:
    """Return the indexes that "1,3" or "1 3" names; none if anything in it is wrong."""
    words = re.findall(r"[^\s,]+", text)
    if not all(word.isdecimal() and 1 <= int(word) <= count for word in words):
        return ()
    return tuple(dict.fromkeys(int(word) - 1 for word in words))
