#!/usr/bin/env bash
# Builds llama-server, without its web page and for this CPU, from the source that the llama-cpp-python sdist brings.
# usage: tests/remote/build_llama_server.sh [TARGET]   (default: $KARAKURI_LLAMA_SERVER, else the tests' cache folder)
# JOBS=4 builds on four cores. Needs a C++ compiler; cmake and ninja are taken from PATH or else from PyPI.
set -euo pipefail
target=${1:-${KARAKURI_LLAMA_SERVER:-${XDG_CACHE_HOME:-$HOME/.cache}/karakuri-tests/llama-server}}
version=0.3.36
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

${PYTHON:-python3} -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --quiet --disable-pip-version-check)
"${pip[@]}" download --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version" --dest "$work"
tar -xzf "$work/llama_cpp_python-$version.tar.gz" -C "$work"
command -v cmake >/dev/null && command -v ninja >/dev/null || "${pip[@]}" install cmake ninja
export PATH=$PATH:$work/venv/bin

cmake -S "$work/llama_cpp_python-$version/vendor/llama.cpp" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DGGML_OPENMP=OFF >"$work/cmake.log"
nice -n 19 ninja -C "$work/build" -j "${JOBS:-1}" llama-server
mkdir -p "$(dirname "$target")"
cp "$work/build/bin/llama-server" "$target"
echo "$target"
