"""A text of several kinds, for comparisons of whole models."""

TEXT = (
    "The Nile is a major north-flowing river in northeastern Africa. It flows into the Mediterranean Sea, and is the "
    "longest river in Africa. Its drainage basin covers eleven countries. In particular, the Nile is the primary water "
    "source of Egypt, Sudan and South Sudan, and it supports agriculture and fishing.\n\n"
    "def fibonacci(n: int) -> list[int]:\n    a, b, out = 0, 1, []\n    for _ in range(n):\n        out.append(a)\n"
    "        a, b = b, a + b\n    return out\n\n"
    "A prime number is a natural number greater than one that is not a product of two smaller natural numbers. There "
    "are infinitely many of them, as Euclid showed around 300 BC: multiply any finite list of primes together and add "
    "one; no prime of the list divides the result. 今天天气很好，我们去河边散步。\n\n"
)
