"""What a LaTeX file quotes, found line by line and held against the records."""

import pytest

from repro.analysis.macros import macro_name
from repro.analysis.quotes import agrees, check_quotes, find_quotes
from repro.errors import UsageError

CELL = "cifar100/vgg16/scaled-bn-m1"
NUMBERS = {
    ("paper", CELL, "mean"): 73.2467,
    ("paper", CELL, "std"): 0.2542,
    ("paper", CELL, "n"): 3.0,
    ("paper", CELL, "difference"): -0.1,
    ("quick", CELL, "mean"): 31.57,
    ("paper", "cifar100/vgg16/cross-entropy", "mean"): 71.86,
}
MACRO = macro_name("paper", CELL, "mean")


@pytest.fixture
def check(tmp_path):
    """Writes lines into paper.tex (and further files) and checks them against NUMBERS."""

    def run(*lines: str, **files: str):
        for name, text in files.items():
            (tmp_path / f"{name}.tex").write_text(text)
        paper = tmp_path / "paper.tex"
        paper.write_text("\n".join(lines) + "\n")
        macros = {macro_name(*key): key for key in NUMBERS}
        found = check_quotes(find_quotes(paper), macros, lambda key: NUMBERS.get(key, "not run yet"))
        return found.compared, [problem.replace(f"{tmp_path}/", "") for problem in found.problems]

    return run


@pytest.mark.parametrize(
    ("quoted", "value", "same"),
    [
        ("73.25", 73.2467, True),
        ("73.2", 73.2467, True),
        ("73", 73.2467, True),
        ("73.24", 73.2467, False),
        ("73.247", 73.2467, True),
        ("-0.10", -0.1, True),
        ("0.10", -0.1, False),
        ("0.13", 0.125, True),
        ("0.12", 0.125, True),
        ("+0.04", 0.04000000000000625, True),
    ],
)
def test_a_number_agrees_at_its_own_decimals(quoted, value, same):
    assert agrees(quoted, value) is same


@pytest.mark.parametrize(
    "line",
    [
        rf"ours & $73.25 \pm 0.25$ & 71.9 \\ % repro: {CELL} mean std _",
        rf"ResNet-18 on CIFAR-100: 73.2 and 71.86 % repro: {CELL} mean; cifar100/vgg16/cross-entropy mean",
        rf"It loses $-$0.10 points. % repro: {CELL} difference",
        rf"It loses $-0.1$ points. % repro: {CELL} difference",
        rf"On few images 31.6 \% % repro: quick:{CELL} mean",
        rf"It reaches \repronum{{{CELL}}}{{mean}}{{73.25}} \%.",
        rf"It reaches \repronum{{quick:{CELL}}}{{mean}}{{31.57}} \%.",
        rf"\newcommand{{\{MACRO}}}{{73.25}}",
        rf"\renewcommand\{MACRO}{{73.25}}",
        rf"\def\{MACRO}{{73.25}}",
        rf"\newcommand{{\{macro_name('paper', CELL, 'difference')}}}{{\ensuremath{{-}}0.10}}",
    ],
)
def test_a_true_quote_passes(line, check):
    compared, problems = check(line)
    assert problems == []
    assert compared >= 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (rf"73.52 % repro: {CELL} mean", f"paper.tex:2: {CELL} mean: quoted 73.52, the records say 73.25"),
        (rf"\repronum{{{CELL}}}{{std}}{{.2}}", "expected a number"),
        (rf"\repronum{{{CELL}}}{{std}}{{0.52}}", "std: quoted 0.52, the records say 0.25"),
        (rf"\repronum{{{CELL}}}{{median}}{{0.52}}", "unknown field 'median'; fields: mean, std, n"),
        (rf"\newcommand{{\{MACRO}}}{{73.40}}", "quoted 73.40, the records say 73.25"),
        (r"\reproCifarOneZeroZeroVggOneSixScaledBnMTwoMean{}", "no cell and field have this name"),
        (rf"73.25 and 3 % repro: {CELL} mean", "the line has 2 numbers (73.25, 3), its annotation names 1"),
        (rf"no number % repro: {CELL} mean", "the line has 0 numbers (none), its annotation names 1"),
        (r"71.00 % repro: cifar100/resnet18/cross-entropy mean", "mean: not run yet"),
        (rf"5 runs % repro: {CELL} n", "n: quoted 5, the records say 3"),
    ],
)
def test_a_wrong_quote_is_named_with_its_line(line, problem, check):
    _, problems = check("A first line.", line)
    assert len(problems) == 1
    assert problems[0].startswith("paper.tex:2: ")
    assert problem in problems[0]


def test_an_input_is_followed_and_named(check):
    stale = f"\\newcommand{{\\{MACRO}}}{{72.00}}\n"
    compared, problems = check(r"\input{numbers}", f"we reach \\{MACRO}{{}} \\%", numbers=stale)
    assert compared == 1
    assert [problem.partition(":")[0] for problem in problems] == ["numbers.tex"]


def test_files_that_input_each_other_end(check):
    line = f"73.25 % repro: {CELL} mean"
    assert check(r"\input{b}", line, b="\\input{paper.tex}\n") == (1, [])


def test_a_macro_that_no_file_defines_is_still_held_against_the_records(check):
    assert check(f"we reach \\{MACRO}{{}}") == (1, [])


def test_what_is_commented_out_is_not_checked(check):
    assert check(f"% \\newcommand{{\\{MACRO}}}{{1.00}}", f"73.25 % repro: {CELL} mean") == (1, [])


def test_an_escaped_percent_sign_is_no_comment(check):
    assert check(rf"73.25\% and 3 % repro: {CELL} mean n") == (2, [])


def test_a_file_that_quotes_nothing_is_no_pass(check):
    with pytest.raises(UsageError, match="quotes no number of the records"):
        check("Some text with 73.25 in it.")


def test_a_file_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "paper.tex"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot read"):
        find_quotes(path)
