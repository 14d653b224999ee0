"""Text that several tests read."""

import random

TEXT = (
    "The Nile is a major north-flowing river in northeastern Africa. It flows into the Mediterranean Sea, and is the "
    "longest river in Africa. Its drainage basin covers eleven countries. In particular, the Nile is the primary water "
    "source of Egypt, Sudan and South Sudan, and it supports agriculture and fishing.\n\n"
    "def fibonacci(n: int) -> list[int]:\n    a, b, out = 0, 1, []\n    for _ in range(n):\n        out.append(a)\n"
    "        a, b = b, a + b\n    return out\n\n"
    "A prime number is a natural number greater than one that is not a product of two smaller natural numbers. There "
    "are infinitely many of them, as Euclid showed around 300 BC: multiply any finite list of primes together and add "
    "one; no prime of the list divides the result. 今天天气很好，我们去河边散步。\n\n"
    "Bread is made from flour, water, salt and yeast. The dough is mixed until it is smooth, left to rise in a warm place "
    "until it has doubled in size, shaped into a loaf, and baked in a hot oven for about forty minutes. The crust is ready "
    "when it is brown and the loaf sounds hollow. Let it cool before cutting, or the crumb will be sticky. In the winter "
    "of 1665 the university closed because of the plague, and the young student went home to the countryside, where he "
    "worked on optics, on the calculus, and on the law of gravitation. He later said that in those days he was in the "
    "prime of his age for invention, and minded mathematics and philosophy more than at any time since.\n\n"
)

WORDS_EN = "the a of and model token cat dog river mountain reads writes sees quickly paper number light".split()
WORDS_ZH = "模型 读取 文字 我们 今天 天气 很好 山 河 猫 狗 数字 光 写 看见 学习 语言".split()


def sentences(count: int, seed: int = 0) -> list[str]:
    """Made-up text in English and Chinese, reproducible."""
    rng = random.Random(seed)
    out = []
    for i in range(count):
        if i % 3 == 2:
            out.append("".join(rng.choices(WORDS_ZH, k=8)) + "。")
        else:
            out.append(" ".join(rng.choices(WORDS_EN, k=9)).capitalize() + f", {rng.randrange(1000)}.")
    return out
