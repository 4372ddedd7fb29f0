"""Functions in six languages: nested and decorated, with CRLF, tabs and letters of many scripts."""

import re
from collections import Counter

import pytest

pytest.importorskip("apache_beam", reason="needs pip install 'jaxcpt[mining]'")

from jaxcpt.mining.code import LANGUAGES, mine_code
from jaxcpt.mining.raw_document import RawDocument

PYTHON = '''# Copyright somebody.
"""Module docstring, of no function."""

@cache
@app.route(
    "/add")
async def add(a, b):  # adds
    # before
    """Adds two numbers.

    Both are integers: größer.

    Args:
        a: the first
    """
    total = a + b
    return total

class Stack:
    """Not a function."""

    def pop(self):
        r"""Removes the top\\item of it."""
        def inner():
            \'\'\'An inner function is part of the outer one.\'\'\'
            x = 1
            return x
        return inner()

\tdef tabbed(self):
\t\t\'\'\'Is indented by tabs here.\'\'\'
\t\tif self:
\t\t\treturn 1
'''
PYTHON = PYTHON.replace("\tdef tabbed", "class T:\n\tdef tabbed")
JAVA = """/*
 * Licensed under the Apache License, Version 2.0
 */
package a;

public class Box<T> {
    /** Not a method. */
    private int size;

    /**
     * Finds the {@link Item} of a given <b>name</b>.
     *
     * @param name the name
     */
    @Override
    public <K> Item find(String name) {
        Item item = map.get(name);
        return item;
    }

    // A line comment is no documentation.
    void plain() {
        a();
        b();
    }

    /** Returns the size. */
    public int getSize() {
        return size;
    }
}
"""
JAVASCRIPT = """/**
 * Adds two numbers up.
 * @param {number} a the first
 */
export default function add(a, b) {
  const c = a + b;
  return c;
}

/** Doubles what it is given. */
export const twice = async (x) => {
  const y = x * 2;
  return y;
};

/** Halves what it is given. */
Number.prototype.half = function () {
  const y = this / 2;
  return y;
};

(function () {
  var tools = {
    /** Joins all its parts. */
    join: function (parts) {
      var all = parts.join();
      return all;
    },
    /** Splits into two parts. */
    split(text) {
      var parts = text.split();
      return parts;
    },
  };
})();

class Shape {
  /** Computes the area of it. */
  area = () => {
    const a = this.w * this.h;
    return a;
  };
}
"""
PHP = """<html><?php
/**
 * Finds a user by name.
 *
 * @return User
 */
function find_user($name)
{
    $user = query($name);
    return $user;
}

#[Attribute]
abstract class Repo
{
    /**
     * Saves the given user now.
     */
    #[Pure]
    final public static function save(User $user): bool
    {
        $ok = self::store($user);
        return $ok;
    }
}
"""
GO = """// Copyright 2020 The Authors. All rights reserved.

// Package a is not a function.
package a

// Sum adds all numbers.
// It returns 0 for none.
//
//go:noinline
func Sum(numbers ...int) int {
	total := 0
	for _, n := range numbers {
		total += n
	}
	return total
}

// Detached comment, a blank line follows.

func (s *Stack) Plain() {
	s.a()
	s.b()
}

/* Pop takes the top off. */
func (s *Stack) Pop() int {
	top := s.items[0]
	return top
}
"""
RUBY = """# frozen_string_literal: true

module Tools
  # Joins the parts into one.
  #
  # @param parts [Array]
  def self.join(parts)
    all = parts.join
    all
  end

  # Splits a text in two.
  private def split(text)
    text.split
  end

  # Splits a text at its spaces.
  private memoize def words(text)
    parts = text.split
    parts
  end

  # Is no documentation of either.
  both def one
    1
  end, def two
    2
  end

  # Nor is it of what is in a block.
  later do
    def third
      parts = text.split
      parts
    end
  end

  # Reads all of the lines.
  def lines
    @lines ||= read
    @lines.each(&:strip)
  end

=begin
Writes all of the lines.
=end
  def write
    open
    close
  end
end
"""
EXPECTED = {}
EXPECTED["python"] = r"""
>>> Adds two numbers. Both are integers: größer.
@cache
@app.route(
    "/add")
async def add(a, b):  # adds
    # before
    total = a + b
    return total
>>> Removes the top\item of it.
def pop(self):
    def inner():
        '''An inner function is part of the outer one.'''
        x = 1
        return x
    return inner()
>>> Is indented by tabs here.
def tabbed(self):
	if self:
		return 1
"""
EXPECTED["java"] = r"""
>>> Finds the Item of a given name .
@Override
public <K> Item find(String name) {
    Item item = map.get(name);
    return item;
}
"""
EXPECTED["javascript"] = r"""
>>> Adds two numbers up.
export default function add(a, b) {
  const c = a + b;
  return c;
}
>>> Doubles what it is given.
export const twice = async (x) => {
  const y = x * 2;
  return y;
};
>>> Halves what it is given.
Number.prototype.half = function () {
  const y = this / 2;
  return y;
};
>>> Joins all its parts.
join: function (parts) {
  var all = parts.join();
  return all;
}
>>> Splits into two parts.
split(text) {
  var parts = text.split();
  return parts;
}
>>> Computes the area of it.
area = () => {
  const a = this.w * this.h;
  return a;
}
"""
EXPECTED["php"] = r"""
>>> Finds a user by name.
function find_user($name)
{
    $user = query($name);
    return $user;
}
>>> Saves the given user now.
#[Pure]
final public static function save(User $user): bool
{
    $ok = self::store($user);
    return $ok;
}
"""
EXPECTED["go"] = r"""
>>> Sum adds all numbers. It returns 0 for none.
func Sum(numbers ...int) int {
	total := 0
	for _, n := range numbers {
		total += n
	}
	return total
}
>>> Pop takes the top off.
func (s *Stack) Pop() int {
	top := s.items[0]
	return top
}
"""
EXPECTED["ruby"] = r"""
>>> Joins the parts into one.
def self.join(parts)
  all = parts.join
  all
end
>>> Splits a text at its spaces.
private memoize def words(text)
  parts = text.split
  parts
end
>>> Reads all of the lines.
def lines
  @lines ||= read
  @lines.each(&:strip)
end
>>> Writes all of the lines.
def write
  open
  close
end
"""

SOURCES = dict(zip(EXPECTED, (PYTHON, JAVA, JAVASCRIPT, PHP, GO, RUBY), strict=True))


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_exactly_the_documented_functions_are_mined(language, ends):
    name = f"repo/src/file{LANGUAGES[language].suffixes[0]}"
    source = SOURCES[language].replace("\n", ends)
    expected = re.split(r"^>>> ", EXPECTED[language], flags=re.M)[1:]
    pairs = list(mine_code(RawDocument(name, source), Counter()))
    assert pairs == [tuple(pair.strip("\n").split("\n", 1)) for pair in expected]
