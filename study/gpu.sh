#!/usr/bin/env bash
# The whole study on one GPU, several runs side by side in processes of their own, then its page.
#
#     study/gpu.sh FOLDER 480                                          # train for at most 480 s, on CIFAR-10
#     study/gpu.sh FOLDER 480 data=image_folder data.root=IMAGES       # on your own images
#
# FOLDER receives runs.csv, epochs.csv and the page. When the time is up, runs are saved and stopped, and those that are
# done are kept; the same command trains the rest, also on another machine, given FOLDER and the same code and commit.
# JOBS is the number of runs at a time. On one H200, 57 of the 138 runs took 7 minutes with JOBS=8, beside seven other
# trainings, under NVIDIA's Multi-Process Service.
set -euo pipefail
folder="$(realpath -m "$1")" seconds="$2"
cd "$(dirname "$0")/.."
study=("${PYTHON:-python}" -m study --out "$folder" "${@:3}" launcher=local launcher.jobs_per_device="${JOBS:-8}")

status=0
timeout --signal=TERM --kill-after=60 "$seconds" "${study[@]}" || status=$?
if [ "$status" = 124 ] || [ "$status" = 137 ] || [ "$status" = 143 ]; then
  "${study[@]}" --page
else
  exit "$status"
fi
