"""Short answers of a Japanese model, read: yes or no, a score, choices, relevances.

For reading only, text is brought to one form first (NFKC): full-width digits, letters, colons and brackets count as
their half-width selves. Knows no model and no prompt.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any, Final

from llama_index.core.output_parsers.base import OutputParserException, StructuredOutput
from llama_index.core.output_parsers.selection import Answer, SelectionOutputParser

from ._llama_index_ja_prompts import SELECTION_FORMAT
from .errors import ReplyFormatError

__all__ = ["JapaneseSelectionOutputParser", "normalised", "parse_choices", "parse_score", "parse_yes_no"]


def normalised(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


# A particle before or after makes another word: 「それはいい」, 「はいけい」; 「はい」か「いいえ」 is the question.
_YES_NO: Final = re.compile(
    r"(?:(?<=[\s「『（(\[:。、,.*\"'>])|\A)(はい|いいえ|yes|no)(?=[\s」』）)\]。、,.!:;*\"'<]|です|だ|\Z)"
    r"(?![」』\"']*\s*(?:か|または|もしくは|/))",
    re.IGNORECASE,
)


def parse_yes_no(text: str) -> bool | None:
    """「はい」, 「いいえ」, yes or no in an answer; None where it says neither.

    The first word counts if the answer begins with it, otherwise the last one: a conclusion follows its reasons.
    """
    plain = normalised(text).strip()
    found = list(_YES_NO.finditer(plain))
    if not found:
        return None
    said = found[0] if not plain[: found[0].start()].strip("「『(\"'* ") else found[-1]
    return said.group(1).lower() in ("はい", "yes")


_NUMBER: Final = r"(\d+(?:\.\d+)?)"
_RANGE: Final = re.compile(r"\(?\s*\d+\s*(?:[~〜-]|から)\s*\d+\s*\)?")
_SCORES: Final = (
    re.compile(rf"点満点(?:中|で|のうち)?\D{{0,4}}{_NUMBER}"),
    re.compile(rf"(?:スコア|点数|得点|評点|採点|評価|score|rating)[^\d\n]{{0,8}}{_NUMBER}", re.IGNORECASE),
    re.compile(rf"\A\W*{_NUMBER}"),
    re.compile(rf"{_NUMBER}\s*点(?!満点)"),
)


def parse_score(text: str, lowest: float = 1.0, highest: float = 5.0) -> tuple[float | None, str]:
    """The score in an answer and the reasons after it; in place of LlamaIndex's `default_parser`.

    A score outside of the bounds is none. An answer of one line is its own reason.
    """
    plain = _RANGE.sub("", normalised(text)).strip()
    found = next((match for pattern in _SCORES if (match := pattern.search(plain))), None)
    score = float(found.group(1)) if found else None
    if score is not None and not lowest <= score <= highest:
        score = None
    first, _, rest = text.strip().partition("\n")
    return score, rest.strip() or first


_RELEVANCES: Final = (
    re.compile(rf"(?:文書|文章|資料|ドキュメント|doc(?:ument)?)\s*[:\[(]?\s*(\d+)\D+?{_NUMBER}", re.IGNORECASE),
    re.compile(rf"\A\W*(\d+)\s*[\])]?\s*[,、:]\D*?{_NUMBER}"),
)


def parse_choices(answer: str, num_choices: int, raise_error: bool = False) -> tuple[list[int], list[float]]:
    """Documents and their relevances, a line each; in place of LlamaIndex's `default_parse_choice_select_answer_fn`.

    Numbers of documents that do not exist, and repeated ones, are left out.

    Raises:
        ReplyFormatError: `raise_error` and a line that names no document and relevance.
    """
    chosen: dict[int, float] = {}
    for line in filter(None, map(str.strip, normalised(answer).splitlines())):
        found = next((match for pattern in _RELEVANCES if (match := pattern.search(line))), None)
        if found is None:
            if raise_error:
                raise _unread(answer, "a line names no document and relevance")
        elif 1 <= int(found.group(1)) <= num_choices:
            chosen.setdefault(int(found.group(1)), float(found.group(2)))
    return list(chosen), list(chosen.values())


def _unread(text: str, why: str) -> ReplyFormatError:
    error = ReplyFormatError(f"the reply cannot be read: {why}; `.partial_text` is the reply. Ask again")
    error.partial_text = text
    return error


_KEYS: Final = (
    (re.compile(r"\"?(?:選択肢?|番号|選んだ番号)\"?\s*:"), '"choice":'),
    (re.compile(r"\"?(?:選んだ)?理由\"?\s*:"), '"reason":'),
)
_CHOSEN: Final = re.compile(r"\A\W*(?:選択肢?|答え|回答|番号|choice)?\W*(\d+)", re.IGNORECASE)
_ONLY_NUMBERS: Final = re.compile(r"[\W\d]*(?:と[\W\d]*)*(?:です|番)?\W*")


class JapaneseSelectionOutputParser(SelectionOutputParser):
    """LlamaIndex's parser for selectors, which also reads Japanese keys, full-width text and answers without JSON."""

    def format(self, prompt_template: str) -> str:
        """The prompt with the form of the answer; once, though LlamaIndex's multi selector asks for it twice."""
        # No doubled braces: LlamaIndex's templates show them as they are.
        return prompt_template if SELECTION_FORMAT in prompt_template else f"{prompt_template}\n{SELECTION_FORMAT}"

    def parse(self, output: str) -> Any:
        """The selection.

        Raises:
            ReplyFormatError: the reply selects nothing.
        """
        answers = self._from_json(output) or list(_from_words(normalised(output)))
        if not answers or any(one.choice < 1 for one in answers):
            raise _unread(output, "it selects nothing")
        return StructuredOutput(raw_output=output, parsed_output=answers)

    def _from_json(self, output: str) -> list[Answer]:
        text = normalised(output)
        for pattern, key in _KEYS:
            text = pattern.sub(key, text)
        try:
            found = super().parse(text).parsed_output
            return [Answer(_integer(one.choice), str(one.reason)) for one in found]
        except (OutputParserException, ValueError, TypeError, KeyError, AttributeError):
            return []


def _integer(value: Any) -> int:
    return int(re.sub(r"\D", "", str(value)))


def _from_words(text: str) -> Iterator[Answer]:
    """A number at the beginning of a line, or a line of numbers."""
    for line in filter(None, map(str.strip, text.splitlines())):
        if _ONLY_NUMBERS.fullmatch(line):
            yield from (Answer(int(number), line) for number in re.findall(r"\d+", line))
        elif found := _CHOSEN.match(line):
            yield Answer(int(found.group(1)), line)
