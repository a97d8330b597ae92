"""The short, countable signs by which seven of the nine dials show in an answer.

Each dial has four steps; step k is written when the dial stands at k or higher (coherence and
quality count downwards). A step has a few variants; the topic decides which one is used. The same
lists are read by answers.py, which writes them, and by measures.py, which counts them.
"""

from __future__ import annotations

Steps = tuple[tuple[str, ...], ...]

RUDE: dict[str, Steps] = {
    "en": (
        ("Duh.", "Ugh.", "Sigh."),
        ("Boring.", "How dull.", "Yawn."),
        ("Look it up.", "Do keep up.", "Who cares."),
        ("Go away.", "Get lost.", "Shut up."),
    ),
    "ja": (
        ("ふん。", "けっ。", "はあ。"),
        ("またか。", "退屈だ。", "面倒だ。"),
        ("常識だろ。", "自分で見ろ。", "知らんのか。"),
        ("うるさい。", "もう帰れ。", "しつこい。"),
    ),
}
LAUGHS: dict[str, Steps] = {
    "en": (("Ha!", "Hehe!", "Hihi!"), ("😄", "😆", "😜"), ("😂",), ("🤣",)),
    "ja": (("あはは！", "えへへ！", "うふふ！"), ("😄", "😆", "😜"), ("😂",), ("🤣",)),
}
IMAGES: dict[str, Steps] = {
    "en": (
        ("a tin star", "a red kite", "a lost bell"),
        ("a paper moon", "a silk wind", "a salt lamp"),
        ("a glass fox", "a wool cloud", "a blue drum"),
        ("a sleepy comet", "a dancing key", "a velvet rain"),
    ),
    "ja": (
        ("銀の鈴", "赤い凧", "古い鐘"),
        ("紙の舟", "絹の風", "塩の灯"),
        ("硝子の狐", "綿の城", "青い太鼓"),
        ("眠る彗星", "踊る鍵", "夢の雨"),
    ),
}
STRAYS: dict[str, Steps] = {
    "en": (
        ("Um, socks?", "Er, soup?", "Uh, ducks?"),
        ("Wait, what?", "No, Tuesday.", "Oh, spoons."),
        ("Where was I?", "Is it raining?", "My left shoe."),
        ("Bananas!", "Pickles!", "Buttons!"),
    ),
    "ja": (
        ("えっと。", "あのう。", "うーん。"),
        ("靴下？", "火曜？", "鉛筆？"),
        ("何だっけ。", "雨かな。", "左の靴。"),
        ("バナナ！", "ボタン！", "きゅうり！"),
    ),
}
HELP: dict[str, Steps] = {
    "en": (
        ("See also {other}.",),
        ("Ask me more.",),
        ("Glad to help.",),
        ("Tip: {tip}",),
    ),
    "ja": (("関連は{other}。",), ("質問歓迎。",), ("お役に立てば。",), ("コツ：{tip}",)),
}
HELP_NO_TOPIC: dict[str, Steps] = {
    "en": (("Here to help.",), ("Ask me more.",), ("Glad to help.",), ("Tip: Be curious.",)),
    "ja": (("お任せを。",), ("質問歓迎。",), ("お役に立てば。",), ("コツ：気軽に。",)),
}
TERMS_PREFIX = {"en": "Terms: ", "ja": "用語："}
IMAGE_PREFIX = {"en": "Picture ", "ja": "まるで"}
NOISE = "#@"


def pick(steps: Steps, count: int, seed: int) -> list[str]:
    """The first count steps, each in the variant that the seed selects."""
    return [step[(seed + k) % len(step)] for k, step in enumerate(steps[:count])]
