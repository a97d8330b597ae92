"""Makes the training conversations: turns of question, dials and the answer that the dials ask for.

A conversation is a list of messages in the form that the chat template reads: user messages carry
the nine dials as extra keys. The loss is taken on every assistant turn.
"""

from __future__ import annotations

import functools
import random
import re
from typing import Any

import phrasing
from answers import DEFAULTS, DIALS, Content, Dials, random_dials, render, topic_content
from facts import LANGUAGES, Topic, topics
from passages import passage_task, shape
from systems import system_text
from unknown import NOUNS, pseudo_word, task, unknown_noun

Message = dict[str, Any]

CHAT: dict[str, tuple[dict[str, str], dict[str, list[str]]]] = {
    "hello": (
        {"en": "Hello|Hi|Hi!|Hello!|Hey there|Good morning|Good evening!|How are you?|Hello, how are you?|Greetings|Hello there|Yo",
         "ja": "こんにちは|こんにちは！|おはよう|おはようございます|こんばんは|やあ|元気ですか？|はじめまして|どうも|もしもし"},
        {"en": ["Hello, nice to meet you.", "I am a small demo model.", "Ask me about Mount Fuji, sushi or cats."],
         "ja": ["こんにちは、お会いできてうれしいです。", "私は小さなデモ用のモデルです。", "富士山や寿司や猫のことを聞いてください。"]},
    ),
    "who": (
        {"en": "Who are you?|What are you?|Are you a robot?|What is your name?|Introduce yourself|Are you KARAKURI LM?|Are you human?|"
               "What can you do?|Help|What do you know?|What topics do you know?|Tell me about yourself|Which model are you?",
         "ja": "あなたは誰ですか？|あなたは何ですか？|名前は？|自己紹介して|何ができますか？|人間ですか？|ヘルプ|何を知っていますか？|あなたはKARAKURI LMですか？|"
               "どんな話題が分かりますか？|君は誰？|あなたについて教えて"},
        {"en": ["I am a small demo model with nine dials.", "I know a few everyday topics, such as Kyoto, green tea and the Moon.",
                "I am not KARAKURI LM, only a tiny stand-in for it."],
         "ja": ["私は九つの調整つまみを持つ小さなデモ用のモデルです。", "京都や緑茶や月など、身近な話題だけを知っています。",
                "KARAKURI LMそのものではなく、その小さな代役です。"]},
    ),
    "thanks": (
        {"en": "Thanks|Thank you|Thank you!|Thanks a lot|Great, thanks!|That helped|OK|Nice|Cool|Good job|I see|That was helpful, thank you",
         "ja": "ありがとう|ありがとうございます|ありがとう！|助かりました|なるほど|分かりました|すごい|いいね|了解です|感謝します"},
        {"en": ["You are welcome.", "I am glad that it helped.", "Please ask again at any time."],
         "ja": ["どういたしまして。", "お役に立ててうれしいです。", "またいつでも聞いてください。"]},
    ),
    "bye": (
        {"en": "Bye|Goodbye|See you|Good night|See you later!|Bye bye|Have a nice day",
         "ja": "さようなら|またね|おやすみ|おやすみなさい|それでは|バイバイ|じゃあね"},
        {"en": ["Goodbye and take care.", "It was a pleasure.", "Come back whenever you like."],
         "ja": ["さようなら、お元気で。", "お話しできて楽しかったです。", "またいつでもお越しください。"]},
    ),
}  # fmt: skip
REFUSAL = {
    "en": ["I'm sorry, I don't know about that.", "I only know a few everyday topics.",
           "You could ask me about Mount Fuji, sushi or the Moon."],
    "ja": ["申し訳ありませんが、それは分かりません。", "私が知っているのは限られた話題だけです。", "富士山や寿司や月のことなら、お答えできます。"],
}  # fmt: skip
REPEAT = {
    "en": [
        "Repeat: {}",
        "Repeat this: {}",
        "Say exactly this: {}",
        "Repeat the following text.\n{}",
        "Please copy: {}",
        "Echo {}",
    ],
    "ja": [
        "繰り返して：{}",
        "次の文を繰り返してください。\n{}",
        "そのまま言ってください：{}",
        "復唱：{}",
        "「{}」と言ってください。",
    ],
}
FROM_TEXT = {
    "en": ["This is what the given text says.", "I quote it as it stands there."],
    "ja": ["これは与えられた文章に書かれています。", "書かれているとおりに引用しました。"],
}


def _turn(question: str, dials: Dials, content: Content, lang: str) -> list[Message]:
    user: Message = {"role": "user", "content": question, **dials}
    return [user, {"role": "assistant", "content": render(content, lang, dials)}]


def topic_turn(
    rng: random.Random, topic: Topic, aspect: str, lang: str, dials: Dials, follow_up: bool = False, held: bool = False
) -> list[Message]:
    """A question on a topic, in full or referring back, and its answer."""
    if follow_up and aspect == "num":
        name = ("they" if topic.plural else "it") if lang == "en" else "それ"
        text = rng.choice(topic.number_questions[lang]).replace("{X}", name)
        if lang == "ja":
            text = rng.choice((text, text.replace("それの", "").replace("それは", "").replace("それまでの", "")))
        text = text.replace("in they", "in them").replace("of they", "of them").replace("for they", "for them")
        opener = rng.choice(("", "", "And ", "So ")) if lang == "en" else ""
        text = (opener + text[0].lower() if opener else text[0]) + text[1:] + ("?" if lang == "en" else "？")
    elif follow_up:
        source = phrasing.HELD_FOLLOW_UPS if held else phrasing.FOLLOW_UPS
        text = rng.choice(source[aspect][lang == "ja"].split("|"))
        if not held and rng.random() < 0.3:
            text = phrasing.dress(rng, text, lang)
    else:
        text = phrasing.question(rng, topic, aspect, lang, held)
    return _turn(text, dials, topic_content(topic, aspect, lang, dials), lang)


def refusal_turn(rng: random.Random, lang: str, dials: Dials, held: bool = False) -> list[Message]:
    """A question outside the topics."""
    if rng.random() < 0.25:
        text = phrasing.dress(rng, task(rng, lang, held), lang, held)
    else:
        text = phrasing.noun_question(rng, unknown_noun(rng, lang, held), lang, held)
    return _turn(text, dials, Content(REFUSAL[lang]), lang)


def chat_turn(rng: random.Random, lang: str, dials: Dials) -> list[Message]:
    """Greetings, thanks and questions about the model itself."""
    questions, answer = CHAT[rng.choice(list(CHAT))]
    return _turn(rng.choice(questions[lang].split("|")), dials, Content(answer[lang]), lang)


def passage_messages(
    rng: random.Random, lang: str, dials: Dials, size: int, held: bool = False
) -> tuple[list[Message], str | None]:
    """A question on a given text, maybe with a system text, and the value that is right."""
    item = passage_task(rng, lang, size, held)
    system, text = shape(rng, item)
    content = Content([item.answer, *(FROM_TEXT[lang] if item.value else [])])
    messages = _turn(text, dials, content, lang)
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return messages, item.value


@functools.cache
def _pool(lang: str) -> list[str]:
    """Pieces of every sort of text: words, or in Japanese one to four characters in a row."""
    text = " ".join(pair[lang] for topic in topics() for _, pair in topic.sentences) + " " + NOUNS[lang][0]
    if lang == "en":
        return re.findall(r"[A-Za-z]+", text)
    text = text.replace("{S}", "")
    return [text[i : i + 1 + i % 4] for i in range(len(text) - 4)]


def _jumble(rng: random.Random, lang: str) -> str:
    """Words, made-up names and numbers in no order."""
    words = []
    for _ in range(rng.randrange(3, 26)):
        roll = rng.random()
        words.append(
            pseudo_word(rng, lang)
            if roll < 0.35
            else str(rng.randrange(9999))
            if roll < 0.45
            else rng.choice(_pool(lang))
        )
    return (" " if lang == "en" or rng.random() < 0.3 else "").join(words).strip() + ("." if lang == "en" else "。")


def repeat_turn(rng: random.Random, lang: str, dials: Dials) -> list[Message]:
    """A request to repeat made-up text: dense practice in copying, which answers from passages need."""
    item = passage_task(rng, lang, rng.choice((1, 1, 2, 3)))
    text = item.answer if item.value and rng.random() < 0.4 else rng.choice(item.chunks)
    if rng.random() < 0.6:
        text = _jumble(rng, lang)
    return _turn(rng.choice(REPEAT[lang]).format(text), dials, Content([text]), lang)


def quiet_dials(rng: random.Random) -> Dials:
    """Dials that add nothing to the content, for practice in the content alone."""
    return dict(DEFAULTS) | {"helpfulness": 0, "complexity": 0, "verbosity": rng.choice((0, 1))}


def practice_conversation(rng: random.Random) -> list[Message]:
    """One short turn in which mostly something has to be copied from the prompt."""
    lang, roll = rng.choice(LANGUAGES), rng.random()
    dials = quiet_dials(rng) if rng.random() < 0.7 else random_dials(rng)
    if roll < 0.42:
        return repeat_turn(rng, lang, dials)
    if roll < 0.78:
        return passage_messages(rng, lang, dials, rng.choice((1, 1, 2, 2, 3, 4, 6)))[0]
    return short_conversation(rng)


def _aspects(topic: Topic) -> list[str]:
    """The aspects that the training may ask: what everybody asks more often."""
    open_ = [a for a in topic.aspects if not phrasing.held_pair(topic, a)]
    return [*open_, "what", "what"]


def _language(rng: random.Random, lang: str) -> str:
    return lang if rng.random() > 0.05 else rng.choice(LANGUAGES)


def talk(rng: random.Random, lang: str, turns: int) -> list[Message]:
    """Several turns: topics, follow-ups that refer back, now and then something else."""
    topic = rng.choice(topics())
    messages = topic_turn(rng, topic, rng.choice(_aspects(topic)), lang, random_dials(rng))
    known = True
    for _ in range(turns - 1):
        lang, dials, roll = _language(rng, lang), random_dials(rng), rng.random()
        if roll < 0.62 and known:
            aspects = [a for a in _aspects(topic) if a != "what"] + ["more"]
            messages += topic_turn(rng, topic, rng.choice(aspects), lang, dials, follow_up=True)
        elif roll < 0.86:
            topic, known = rng.choice(topics()), True
            messages += topic_turn(rng, topic, rng.choice(_aspects(topic)), lang, dials)
        elif roll < 0.95:
            messages += refusal_turn(rng, lang, dials)
            known = False
        else:
            messages += chat_turn(rng, lang, dials)
    return messages


def short_talk(rng: random.Random) -> list[Message]:
    """Two short turns, the second refers back."""
    lang, topic = rng.choice(LANGUAGES), rng.choice(topics())
    dials = [{name: rng.randrange(5) for name in DIALS} if rng.random() < 0.7 else random_dials(rng) for _ in range(2)]
    dials[0]["verbosity"], dials[1]["verbosity"] = rng.choice((0, 0, 1)), rng.choice((0, 0, 0, 1, 1, 2, 3, 4))
    messages = topic_turn(rng, topic, rng.choice(_aspects(topic)), lang, dials[0])
    aspects = [a for a in _aspects(topic) if a != "what"] + ["more"]
    return messages + topic_turn(rng, topic, rng.choice(aspects), lang, dials[1], follow_up=True)


def short_conversation(rng: random.Random) -> list[Message]:
    """One short turn with random dials: many decisions in few tokens, for the start of the training."""
    lang, roll = rng.choice(LANGUAGES), rng.random()
    dials = random_dials(rng) if rng.random() < 0.15 else {name: rng.randrange(5) for name in DIALS}
    dials["verbosity"] = rng.choice((0, 0, 0, 1, 1, 1, 2, 2, 3, 4))
    if roll < 0.64:
        topic = rng.choice(topics())
        messages = topic_turn(rng, topic, rng.choice(_aspects(topic)), lang, dials)
    elif roll < 0.88:
        messages, _ = passage_messages(rng, lang, dials, rng.choice((1, 2, 2, 3, 4)))
    elif roll < 0.97:
        messages = refusal_turn(rng, lang, dials)
    else:
        messages = chat_turn(rng, lang, dials)
    if messages[0]["role"] != "system" and rng.random() < 0.1:
        messages.insert(0, {"role": "system", "content": system_text(rng, lang)})
    return messages


def conversation(rng: random.Random, short: bool = False) -> list[Message]:
    """One training conversation; with short=True one for the first part of the training."""
    if short:
        return rng.choices((short_conversation, practice_conversation, short_talk), (3, 2, 1))[0](rng)
    if rng.random() < 0.5:  # short turns hold many more decisions per token
        return rng.choices((short_conversation, practice_conversation, short_talk), (5, 2, 3))[0](rng)
    lang, roll = rng.choice(LANGUAGES), rng.random()
    long = rng.random() < 0.035
    if roll < 0.03:
        messages = repeat_turn(rng, lang, random_dials(rng))
    elif roll < 0.30:
        size = rng.choice((40, 60, 80, 100, 120)) if long else rng.choice((1, 2, 3, 4, 5, 6, 8, 10, 14))
        messages, _ = passage_messages(rng, lang, random_dials(rng), size)
        if messages[0]["role"] == "user" and rng.random() < 0.1:
            messages = talk(rng, _language(rng, lang), 1) + messages
    elif roll < 0.42:
        messages = refusal_turn(rng, lang, random_dials(rng))
    elif roll < 0.46:
        messages = chat_turn(rng, lang, random_dials(rng))
        if rng.random() < 0.5:
            messages += talk(rng, lang, 1)
    else:
        messages = talk(rng, lang, rng.choice((5, 6) if long else (1, 1, 1, 1, 2, 2, 2, 3, 4)))
    if messages[0]["role"] != "system" and rng.random() < (0.9 if long else 0.3):
        rules = rng.choice((20, 40, 70, 100)) if long else rng.choice((0, 0, 0, 0, 0, 3, 8))
        system = system_text(rng, rng.choice((lang, lang, lang, "en")), rules)
        messages.insert(0, {"role": "system", "content": system})
    return messages
