"""A compact ConText: what one sentence of a chest report claims, in which status and on which side.

The words lie in `lexicon.json`. A sentence is cut into clauses; a trigger ("no", "may represent", "is not seen")
speaks for the mentions of its own clause, forward or backward (Harkema et al., J Biomed Inform 2009). Anatomy becomes
a mention through its state: "heart" and "enlarged", "lungs" and "clear".
"""

from __future__ import annotations

import bisect
import functools
import json
import re
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

LEXICON: dict[str, Any] = json.loads(Path(__file__).with_name("lexicon.json").read_text(encoding="utf-8"))

_VERBS = {"verbs", "uncertain verb", "absent after", "uncertain after", "uncertain either"}
_SAID = {*_VERBS, "participles"}
_SOFT = {"comma", "conjunctions"}
_WITH = {"with", "beside"}
_FORWARD = {
    "absent before": "absent",
    "present before": "present",
    "uncertain before": "uncertain",
    "uncertain verb": "uncertain",
    "uncertain either": "uncertain",
    "no claim before": "no claim",
}
_BACKWARD = {"absent after": "absent", "uncertain after": "uncertain", "present after": "present"}
_TABLES = ("about", "mesh", "mesh without finding", "nothing found", "long words", "other words")
_GAP = r"(?:[ -]{1,9}(?!(?:and|or|nor|with|without|but|no|near|from)\b)[a-z0-9]{1,20}){0,4}[ -]{1,9}"
_LONGEST_CLAUSE = 60  # items; keeps the time linear where a model repeats itself without a full stop

# One character for one, so that spans stay those of the given text (str.lower is not: the Turkish I becomes two).
_PLAIN = {ord(c): c.lower() for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
_PLAIN |= dict.fromkeys(map(ord, "\t\n\r\f\v\u00a0_"), " ") | {0x2019: "'"} | dict.fromkeys(range(0x2010, 0x2015), "-")


class Mention(NamedTuple):
    """One place that speaks about an observation.

    Attributes:
        observation: one of the 14, never No Finding; or "Other Finding".
        status: "present", "absent" or "uncertain".
        side: "left", "right", "bilateral", or "" where the text gives none.
        start: first character in the text.
        end: one past the last character.
        sentence: its index in the text.
    """

    observation: str
    status: str
    side: str
    start: int
    end: int
    sentence: int = 0


class _Item(NamedTuple):
    """A phrase of the lexicon found in the sentence; kind is its section, value its heading within."""

    kind: str
    value: str
    start: int
    end: int


class _Candidate(NamedTuple):
    """A mention before its context is read."""

    observations: tuple[str, ...]
    status: str  # "not mentioned": nothing unless it is denied
    start: int
    end: int
    at: int  # where forward triggers reach it: the state of a subject, else the mention itself
    fixed: bool  # "heart size is normal" is a denial already


# "," ";" "?" "(+)" and "(-)"
_SIGNS = (("comma", ""), ("breaks", ""), ("sign", "uncertain"), ("sign", "present"), ("sign", "absent"))


def _phrases() -> Iterator[tuple[str, str, str]]:
    """(kind, value, phrase) for every phrase of the lexicon."""
    for section, content in LEXICON.items():
        if section == "subjects":
            yield from ((section, value, phrase) for value, table in content.items() for phrase in table["phrases"])
        elif section in ("mentions", "states", "sides"):
            yield from ((section, value, phrase) for value, phrases in content.items() for phrase in phrases)
        elif section not in _TABLES:  # these are no phrases of a sentence
            yield from ((section, "", phrase) for phrase in content)


def _words(phrase: str) -> int:
    """The least number of words that a phrase matches: at one position the phrase of more words is tried first."""
    while "(" in phrase:
        phrase = re.sub(r"\([^()]*\)\?", "", phrase)
        phrase = re.sub(r"\(([^()]*)\)(?!\?)", lambda either: min(either[1].split("|"), key=_words), phrase)
    return len(phrase.replace("~", "").split())


def _expression(phrase: str) -> str:
    """A phrase as a regular expression; bounded repeats keep it linear."""
    syntax = {"(": "(?:", "*": "[a-z]{0,15}", " ?": "[ -]{0,9}", " ": "[ -]{1,9}", " ~ ": _GAP}
    return re.sub(r" ~ | \?|[(* ]", lambda sign: syntax[sign.group()], phrase)


def _compile() -> tuple[re.Pattern[str], list[tuple[str, str]]]:
    """The lexicon as one expression whose group number gives kind and value."""
    entries = sorted(_phrases(), key=lambda entry: (-_words(entry[2]), -len(entry[2]), entry[0] != "ignored"))
    groups = (_expression(phrase) for _, _, phrase in entries)
    # The groups are empty and stand behind the phrases: so `re` skips a phrase by its first letter (25 times as fast).
    signs = r",()|;()|\?()|[(\[](?:\+|pos)[)\]]()|[(\[](?:-|neg)[)\]]()"
    pattern = rf"{signs}|(?<![a-z0-9])(?:{'()|'.join(groups)}())(?![a-z0-9])"
    return re.compile(pattern), [*_SIGNS, *((kind, value) for kind, value, _ in entries)]


_PATTERN, _KINDS = _compile()
_NOTHING_FOUND = re.compile(rf"(?<![a-z0-9])(?:{'|'.join(map(_expression, LEXICON['nothing found']))})(?![a-z0-9])")


def denies_all(text: str) -> bool:
    """Whether a text calls something normal or denies disease in general, in words that name no observation."""
    return bool(_NOTHING_FOUND.search(text.translate(_PLAIN)))


def _shortened(word: str) -> set[str]:
    """The word, and what is left of it without any one letter."""
    return {word, *(word[:n] + word[n + 1 :] for n in range(len(word)))}


_MISSPELT = {part: word for word in LEXICON["long words"] for part in _shortened(word)}
_LONG_WORD = re.compile(r"(?<![a-z])(?:[a-z]{2,5}n't|[a-z]{7,20})(?![a-z])")


def read_sentence(sentence: str) -> tuple[Mention, ...]:
    """The claims of a sentence in its order; spans are positions in the sentence, any string will do."""
    plain = sentence.translate(_PLAIN)
    mended, moved = _mend(plain)
    claims = _read(mended)
    if not moved:
        return claims
    ends, shifts = [0, *(end for end, _ in moved)], [0, *(shift for _, shift in moved)]

    def back(place: int) -> int:
        return place - shifts[bisect.bisect_right(ends, place) - 1]

    return tuple(claim._replace(start=back(claim.start), end=back(claim.end)) for claim in claims)


def _mend(sentence: str) -> tuple[str, list[tuple[int, int]]]:
    """Writes long words right in which one letter is wrong, missing, too many, or swapped with its neighbor.

    Two words are such a pair if they are equal once each has lost a letter, or none: "pneumothroax" and "pneumothorax"
    are both "pneumothoax" without an "r".

    Returns:
        The sentence, and of each mended word its end there and how far what follows has moved.
    """
    parts, moved, start, shift = [], [], 0, 0
    for match in _LONG_WORD.finditer(sentence):
        if (right := _spelling(match[0])) != match[0]:
            parts += [sentence[start : match.start()], right]
            start = match.end()
            shift += len(right) - len(match[0])
            moved.append((start + shift, shift))
    return "".join([*parts, sentence[start:]]), moved


@functools.lru_cache(maxsize=8192)
def _spelling(word: str) -> str:
    """The long word that this one was meant to be, "is not" for "isn't", else the word as it is."""
    if word.endswith("n't"):
        return "cannot" if word == "can't" else f"{word[:-3]} not"
    if word in LEXICON["other words"] or _PATTERN.fullmatch(word):
        return word
    return min((_MISSPELT[part] for part in _shortened(word) if part in _MISSPELT), default=word)


@functools.lru_cache(maxsize=8192)  # two thirds of the sentences of a collection are repeats
def _read(sentence: str) -> tuple[Mention, ...]:
    items: list[_Item] = []
    for match in _PATTERN.finditer(sentence):
        kind, value = _KINDS[(match.lastindex or 0) - 1]
        if kind in ("sign", "absent either"):  # "PTX (-)" and "(-) PTX", "tube removed" and "removed tube"
            behind = items and items[-1].kind in ("mentions", "subjects") and match.start() - items[-1].end <= 2
            kind, value = f"{value or 'absent'} {'after' if behind else 'before'}", ""
        if kind != "ignored":
            items.append(_Item(kind, value, match.start(), match.end()))
    claims: list[Mention] = []
    for clause in _clauses(items):
        mentions = _mentions(clause)
        statuses = [_status(mention, clause) for mention in mentions]
        _doubt_alternatives(mentions, statuses, clause)
        for mention, status, side in zip(mentions, statuses, _sides(mentions, statuses, clause), strict=True):
            if status:
                claims += [Mention(name, status, side, mention.start, mention.end) for name in mention.observations]
    return tuple(sorted(claims, key=lambda claim: (claim.start, claim.end)))


def _clauses(items: Sequence[_Item]) -> Iterator[list[_Item]]:
    """Cuts where a statement begins: at "but", ";" and "there is", and at commas and "and" where one follows."""
    clause: list[_Item] = []
    for i, item in enumerate(items):
        # "In the left base there is an opacity" stays whole; "no prior, there is an opacity" does not.
        ended = ("mentions", "states", *_SAID, *(["absent before"] if clause and clause[-1].kind == "comma" else []))
        begins = item.kind == "existential" and any(c.kind in ended for c in clause)
        follows = item.kind in _SOFT and _is_complete(clause, item, items[i + 1 : i + _LONGEST_CLAUSE])
        if begins or follows or item.kind == "breaks" or len(clause) > _LONGEST_CLAUSE:
            yield clause
            clause = []
        clause.append(item)
    yield clause


def _is_complete(before: Sequence[_Item], separator: _Item, rest: Sequence[_Item]) -> bool:
    """Whether a comma or "and" ends the statement before it, or is only between items of a list."""
    stop = next((n for n, item in enumerate(rest) if item.kind in (*_SOFT, "breaks", "existential")), len(rest))
    segment = rest[:stop]
    if not segment:
        return False
    kinds = [item.kind for item in segment]
    verb = next((n for n, kind in enumerate(kinds) if kind in _VERBS), None)
    first = kinds[0] if segment[0].start - separator.end <= 1 else ""  # "" where another word stands before it
    denied = any(item.kind == "absent before" for item in before)
    if not _named(before):
        # "Without comparisons, this may", "no free air, left collapse"; but "no acute, displaced fracture is seen".
        far = separator.start - before[-1].end if denied else 0
        apart = (far > 8 and first in ("degrees", "sides")) or (far > 12 and first == "statement starters")
        return denied and (apart or (verb is not None and "participles" not in kinds))
    if first == "alternatives" or _is_list(before, separator, rest):
        return False
    if kinds[0] in _BACKWARD and not _named(segment):  # "an effusion was noted, which is no longer seen"
        return False
    if verb is not None and separator.kind == "comma":
        # "No effusion, the heart is enlarged", "no effusion, findings may represent edema"
        if _named(segment[:verb]) or (denied and segment[verb].start - separator.end > 1 and _named(segment[verb:])):
            return True
    elif verb is not None and denied and first == "statement starters":  # "no effusion and the heart is enlarged"
        return True
    if any(item.kind in _SAID for item in before) and (verb is not None or "participles" in kinds):
        return True
    # "No effusion, mild cardiomegaly": the list of what is denied is over, unless an "or" is still to come.
    if any(item.kind == "alternatives" for item in rest) or not denied:
        return False
    # After "and" only a degree says so: "removal of the tube and the left catheter", "no effusion and mild edema".
    starters = ("degrees",) if separator.kind == "conjunctions" else ("degrees", "statement starters", "sides")
    return first in starters or ("subjects" in kinds and "states" in kinds)


def _named(items: Sequence[_Item]) -> bool:
    return any(item.kind in ("mentions", "subjects") for item in items)


def _is_list(before: Sequence[_Item], separator: _Item, rest: Sequence[_Item]) -> bool:
    """Whether the names on both sides of a comma share the verb to come: "no A, B or C is seen".

    Worked through at the first comma: before it stands "no A", without a verb or an "or" that would end the list; up
    to "is" come names only, the last after an "or". So the comma is inside the list, and "no" holds for C too. In
    "no A, B, C is seen" three names do instead of the "or"; in "no A, B is seen" nothing tells, and B is seen.
    """
    denied = any(item.kind == "absent before" for item in before)
    if any(item.kind in _SAID or item.kind == "alternatives" for item in before):
        return False
    if not denied and any(item.kind in ("degrees", "sides") for item in before):
        return False  # "Small left effusion, pneumothorax is not seen"
    verb = next((n for n, item in enumerate(rest) if item.kind in _SAID), len(rest))
    names = rest[:verb]
    if verb == len(rest) or any(item.kind in ("breaks", "existential", "states", *_WITH) for item in names):
        return False
    joints = [item.kind for item in names if item.kind in (*_SOFT, "alternatives", "absent before")]
    if joints and joints[-1] in ("alternatives", "absent before"):
        return True
    commas = [item for item in (*before, separator, *names) if item.kind == "comma"]
    bare = not any(item.kind in ("degrees", "sides", "statement starters") for item in names)
    return bare and len(commas) >= 2 and (denied or rest[verb].kind in _BACKWARD)


def _mentions(clause: Sequence[_Item]) -> list[_Candidate]:
    found = [
        _Candidate(tuple(item.value.split(", ")), "present", item.start, item.end, item.start, False)
        for item in clause
        if item.kind == "mentions"
    ]
    subjects = [n for n, item in enumerate(clause) if item.kind == "subjects"]
    in_front = {n: state for n in subjects if (state := _state_in_front(clause, n))}
    shared = None  # "normal heart size and mediastinal contours": the first subject's state serves the second
    for n, item in enumerate(clause):
        if item.kind in ("statement starters", "degrees"):
            shared = None
        if item.kind == "subjects":
            state = in_front.get(n) or _state_behind(clause[n + 1 :], set(in_front.values())) or shared
            shared = in_front.get(n, shared)
            found += _of_subject(item, state)
    return sorted(found, key=lambda mention: (mention.start, mention.end))


def _state_in_front(clause: Sequence[_Item], n: int) -> _Item | None:
    """The state before subject `n`: "normal heart size", "enlargement of the heart"."""
    fillers = ("prepositions", "statement starters", "degrees", "sides")
    nearest = next((item for item in reversed(clause[max(0, n - 3) : n]) if item.kind not in fillers), None)
    near = nearest is not None and nearest.kind == "states" and clause[n].start - nearest.end < 25
    return nearest if near else None


def _state_behind(rest: Sequence[_Item], taken: Set[_Item]) -> _Item | None:
    """The first state after a subject, unless another subject has the verb: "heart is stable, bones are normal"."""
    verb = False
    for item, following in zip(rest, [*rest[1:], None], strict=False):
        # "The mediastinum is stable, enlarged lymph nodes": the state of what stands right behind it.
        foreign = following is not None and following.kind == "mentions" and following.start - item.end <= 12
        if item.kind == "states" and item not in taken and not foreign:
            return item
        if item.kind in _WITH or (verb and item.kind in ("subjects", "mentions")):
            return None
        verb = verb or item.kind in _VERBS
    return None


def _of_subject(subject: _Item, state: _Item | None) -> Iterator[_Candidate]:
    """What a subject in a state amounts to, by the lexicon's table."""
    table = LEXICON["subjects"][subject.value]
    if state is not None and state.value in table:
        start, end = min(subject.start, state.start), max(subject.end, state.end)
        for status, names in table[state.value].items():
            yield _Candidate(tuple(names), status, start, end, state.start, status == "absent")
    else:  # "vascular congestion" says something without a state
        for status, names in table.get("itself", {}).items():
            yield _Candidate(tuple(names), status, subject.start, subject.end, subject.start, False)


def _status(mention: _Candidate, clause: Sequence[_Item]) -> str:
    """The mention's status in its context; "" where nothing is claimed after all."""
    if mention.fixed:
        return mention.status
    context = _triggered_in_front(mention, clause)
    if context != "no claim":
        context = _triggered_behind(mention, clause) or context
    if context == "no claim" or (mention.status == "not mentioned" and context != "absent"):
        return ""
    return context or mention.status


def _triggered_behind(mention: _Candidate, clause: Sequence[_Item]) -> str | None:
    for n, item in enumerate(clause):
        if item.start >= mention.end:
            if item.kind in _WITH:
                break
            if item.kind in _BACKWARD:
                return _BACKWARD[item.kind]
            if item.kind == "uncertain either" and not any(i.kind == "mentions" for i in clause[n:]):
                return "uncertain"
    return None


def _triggered_in_front(mention: _Candidate, clause: Sequence[_Item]) -> str | None:
    """The nearest trigger, or the denial of that one: "no opacity to suggest pneumonia"."""
    listed = any(item.kind == "alternatives" for item in clause)
    found, comma, verb, told, after = None, False, False, False, False
    for item in reversed(clause):
        if item.end > mention.at:
            continue
        if item.kind in _WITH or (verb and item.kind == "mentions"):
            break
        if item.kind in ("absent before", "present before"):
            return found if after else _FORWARD[item.kind]
        if item.value == "borderline":
            found = found or "uncertain"
        if item.kind == "no claim before" and not (found and (told or comma)):
            return "no claim"
        # A doubting adjective ends at a comma where no list goes on: "possible nodule, cardiomegaly".
        if found is None and item.kind in _FORWARD and (item.kind != "uncertain before" or listed or not comma):
            found = _FORWARD[item.kind]
        comma = comma or item.kind == "comma"
        verb, told = verb or item.kind in _VERBS, told or item.kind == "verbs"
        after = after or item.kind == "after"  # "no pneumothorax after placement of the tube"
    return found


def _doubt_alternatives(mentions: Sequence[_Candidate], statuses: list[str], clause: Sequence[_Item]) -> None:
    """Makes what is asserted on both sides of "or" and "versus" uncertain, in place."""
    ends = [mention.end for mention in mentions]
    for n, item in enumerate(clause):
        left = bisect.bisect_right(ends, item.start) - 1
        if item.kind != "alternatives" or left < 0 or left + 1 == len(mentions):
            continue
        if any(i.kind == "unchanged" for i in clause[:n]):  # "no change in effusion or edema": both are there
            continue
        asserted = {statuses[left], statuses[left + 1]} <= {"present", "uncertain"}
        if asserted and not _parted(clause, ends[left], mentions[left + 1].start, _VERBS | _WITH):
            statuses[left] = statuses[left + 1] = "uncertain"


def _sides(mentions: Sequence[_Candidate], statuses: Sequence[str], clause: Sequence[_Item]) -> list[str]:
    """The side of each mention: in front of it ("left effusion"), or behind it ("effusion on the left")."""
    sides, behind = [""] * len(mentions), [False] * len(mentions)
    for n, item in enumerate(clause if mentions else ()):
        if item.kind != "sides":
            continue
        previous = clause[n - 1] if n else item
        following = {other.kind for other in clause[n + 1 : n + 3]}
        if previous.kind == "comma" and "states" in following and not any(m.start > item.end for m in mentions):
            continue  # "left effusion, right base is clear"
        post = previous.kind == "prepositions" and item.start - previous.end <= 1
        to = next((m for m, mention in enumerate(mentions) if mention.end > item.start), len(mentions))
        last = to == len(mentions)
        if to and (post or last or _parted(clause, item.end, mentions[to].start, _VERBS | _WITH)):
            to, post = to - 1, True
        # "Clips in the right axilla and a left nodule": the article tells that the first side was another's.
        anew = previous.kind == "statement starters" and n > 1 and clause[n - 2].kind in _SOFT
        anew = anew and mentions[to].start > item.start
        sides[to] = item.value if sides[to] in ("", item.value) or anew else "bilateral"
        behind[to] = post
    # "Left effusion and atelectasis", "effusion and atelectasis on the left": one side for what is claimed together.
    steps = [(n, n + 1) for n in range(len(mentions) - 1)]
    for source, target in [*steps, *((b, a) for a, b in reversed(steps))]:
        together = (statuses[source] == "absent") == (statuses[target] == "absent")
        low, high = min(source, target), max(source, target)
        parted = _parted(clause, mentions[low].end, mentions[high].start, {"with"})
        if not sides[target] and together and not parted and (source < target or behind[source]):
            sides[target], behind[target] = sides[source], behind[source]
    return sides


def _parted(clause: Sequence[_Item], start: int, end: int, kinds: Set[str]) -> bool:
    return any(start <= item.start < end and item.kind in kinds for item in clause)
