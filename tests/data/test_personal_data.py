"""Personal data is masked by kind; what only looks like it stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq.data.documents import Document
from qwq.data.personal import Personal, chinese_id, luhn, mask


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Mail jane.doe+x@mail.co.uk now", "Mail <EMAIL> now"),
        ("信箱abc@qq.com吧", "信箱<EMAIL>吧"),
        ("手机13912345678。", "手机<PHONE>。"),
        ("+86 139 1234 5678 or 010-62345678", "<PHONE> or <PHONE>"),
        ("(555) 234-5678, +44 20 7946 0958", "<PHONE>, <PHONE>"),
        ("身份证11010519491231002X，", "身份证<ID>，"),
        ("4111 1111 1111 1111 and 378282246310005", "<CARD> and <CARD>"),
        ("卡号6222021234567890128", "卡号<CARD>"),
        ("13912345678 13812345678", "<PHONE> <PHONE>"),
        ("from 93.184.216.34 and 2606:2800:220:1:248:1893:25c8:1946", "from <IP> and <IP>"),
        ("地址93.184.216.34的", "地址<IP>的"),
    ],
)
def test_each_kind_has_its_placeholder(text, masked):
    """E-mail, phones of several countries, identity numbers, cards, addresses; between Chinese characters too."""
    assert mask(text)[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        "write to you@example.com or a@b.test",
        "110105194912310021 has a wrong check digit, 990105194912310028 no province",
        "4111 1111 1111 1112 fails the check",
        "ISBN 978-0-306-40615-7, population 12345678, $1234567890, 1,234,567,890, 3.14159265358979",
        "1990-2000, 2024-01-15 12:30:45, 20240115123045, RFC 2119 1994 1995 1996",
        "version 93.184.216.34, section 7.3.5.1, 192.168.1.1, 127.0.0.1, 999.1.1.1, 224.0.0.1",
        "time 10:20:30, mac 00:1b:44:11:3a:b7, std::vector<int>",
    ],
)
def test_what_only_looks_like_it_stays(text):
    """Dates, prices, versions, sections, private networks, examples, numbers without their check digit."""
    assert mask(text) == (text, {})


def test_numbers_in_code_are_numbers():
    """There, only e-mail and IP addresses go."""
    code = "x = 13912345678  # jane@mail.org, 93.184.216.34, 4111111111111111"
    assert mask(code, code=True)[0] == "x = 13912345678  # <EMAIL>, <IP>, 4111111111111111"


@given(st.integers(10**11, 10**18))
def test_the_last_digit_decides(number):
    """Exactly one last digit passes the check of a card."""
    assert sum(luhn(f"{number}{digit}") for digit in range(10)) == 1


@given(st.dates(), st.integers(0, 999))
def test_a_chinese_number_has_one_check_character(born, order):
    """And none without a real birthday or province."""
    body = f"110105{born:%Y%m%d}".replace(" ", "0") + f"{order:03d}"
    valid = sum(chinese_id(body + check) for check in "0123456789X")
    assert valid == int(1880 <= born.year <= 2100)
    assert not any(chinese_id("11010519490231002"[:17] + check) for check in "0123456789X")


@given(st.text())
def test_masking_twice_masks_no_more(text):
    """Placeholders are not personal data."""
    once, _ = mask(text)
    assert mask(once)[0] == once


def test_messages_are_masked_and_counted():
    """The text of a chat stays the contents of its messages."""
    turns = [{"role": "user", "content": "I am jane@mail.org"}, {"role": "assistant", "content": "Call 13912345678"}]
    document, stage = Document("I am jane@mail.org\nCall 13912345678", "s", kind="dialogue", messages=turns), Personal()
    assert stage(document) is None
    assert document.text == "I am <EMAIL>\nCall <PHONE>" == "\n".join(m["content"] for m in document.messages)
    assert document.meta["masked"] == {"EMAIL": 1, "PHONE": 1} == stage.tally
