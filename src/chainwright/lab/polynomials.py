"""Polynomials in a state s and an input x with whole coefficients, read from text such as "s*x + 1"."""

from __future__ import annotations

import ast

from chainwright._errors import BadInput

Terms = dict[tuple[int, int], int]
"""Coefficients by (power of s, power of x)."""

_MOST_POWER = 64


def parse_polynomial(text: str) -> Terms:
    """Return the terms of a polynomial written with s, x, whole numbers, +, -, *, ** and parentheses.

    Raises:
        BadInput: The text is no such polynomial.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError as error:
        raise _unreadable(text) from error
    return _terms(tree.body, text)


def transitions(terms: Terms, modulus: int, alphabet: int) -> list[list[int]]:
    """Return the next state for every state (rows) and input (columns).

    Raises:
        BadInput: The next state does not depend on the state, whatever the input.
    """
    table = [
        [sum(c * s**i * x**j for (i, j), c in terms.items()) % modulus for x in range(alphabet)] for s in range(modulus)
    ]
    if all(row == table[0] for row in table):
        raise BadInput(
            f"Modulo {modulus} the polynomial {_written(terms)} has the same value for every state, so nothing is "
            "iterated; use one that depends on s, such as s*x + 1."
        )
    return table


def _written(terms: Terms) -> str:
    shown = [f"{c}*s**{i}*x**{j}" for (i, j), c in sorted(terms.items(), reverse=True) if c]
    return " + ".join(shown) or "0"


def _unreadable(text: str) -> BadInput:
    return BadInput(
        f"A polynomial is written with s (state), x (input), whole numbers, +, -, *, ** and parentheses, such as "
        f"'s*x + 1'; got {text!r}."
    )


def _terms(node: ast.expr, text: str) -> Terms:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return {(0, 0): value}
        case ast.Name(id="s"):
            return {(1, 0): 1}
        case ast.Name(id="x"):
            return {(0, 1): 1}
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return _times({(0, 0): -1}, _terms(inner, text))
        case ast.BinOp(left=base, op=ast.Pow(), right=ast.Constant(value=int(power))) if 0 <= power <= _MOST_POWER:
            return _power(_terms(base, text), power)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() as op, right=right):
            a, b = _terms(left, text), _terms(right, text)
            if isinstance(op, ast.Mult):
                return _times(a, b)
            return _plus(a, b if isinstance(op, ast.Add) else _times({(0, 0): -1}, b))
        case _:
            raise _unreadable(text)


def _plus(a: Terms, b: Terms) -> Terms:
    return {key: a.get(key, 0) + b.get(key, 0) for key in {*a, *b}}


def _times(a: Terms, b: Terms) -> Terms:
    product: Terms = {}
    for (i, j), c in a.items():
        for (k, m), d in b.items():
            product[i + k, j + m] = product.get((i + k, j + m), 0) + c * d
    return product


def _power(terms: Terms, power: int) -> Terms:
    result: Terms = {(0, 0): 1}
    for _ in range(power):
        result = _times(result, terms)
    return result
