#!/usr/bin/env bash
# Runs the tests that need no torch on other langchain-core versions and on other Pythons, where they can be installed.
# usage: tests/matrix.sh PYTHON [OPTIONS OF PYTEST]   (the interpreter of the prepared environment)
set -euo pipefail
python=$1
shift
cd "$(dirname "$0")/.."
work=$(dirname "$python")/../matrix
mkdir -p "$work"

install() { "$@" >"$work/pip.log" 2>&1 || { tail -n 3 "$work/pip.log"; return 1; }; }

for version in 1.6.0 1.8.2; do
  target=$work/langchain-core-$version
  if [ ! -d "$target" ]; then
    # Without its dependencies: 1.8 pins a certifi that not every index has; the prepared environment has the rest.
    install "$python" -m pip install --quiet --no-deps --target "$target" "langchain-core==$version" || {
      rm -rf "$target"; echo "matrix: langchain-core $version cannot be installed here: skipped"; continue; }
  fi
  echo "matrix: langchain-core $version"
  PYTHONPATH=$target "$python" -m pytest -q "$@" tests/langchain
done

find_python() {
  command -v "python$1" >/dev/null 2>&1 && "python$1" -c '' 2>/dev/null && { command -v "python$1"; return; }
  command -v pyenv >/dev/null 2>&1 || return 1
  local found
  found=$(pyenv versions --bare | grep "^$1\." | tail -n 1) || return 1
  echo "$(pyenv root)/versions/$found/bin/python"
}

for version in 3.12 3.13; do
  other=$(find_python "$version") || { echo "matrix: Python $version not found: skipped"; continue; }
  venv=$work/python-$version
  if [ ! -f "$venv/.ready" ]; then
    rm -rf "$venv"
    "$other" -m venv "$venv"
    install "$venv/bin/python" -m pip install --quiet -e ".[langchain,llama-index]" \
      "langchain-tests==1.1.9" "pytest>=9.0.3" pytest-asyncio pytest-timeout "pytest-xdist[psutil]>=3.6" hypothesis "jsonschema>=4.20" || {
      echo "matrix: Python $version cannot be prepared here: skipped"; continue; }
    touch "$venv/.ready"
  fi
  echo "matrix: Python $version (without torch)"
  "$venv/bin/python" -m pytest -q "$@"
done
