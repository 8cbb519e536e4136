#!/usr/bin/env bash
# One run on all hosts of a Cloud TPU slice, which find each other by the slice's own metadata:
#
#     TPU=my-slice ZONE=us-central2-b launch/tpu_vm.sh train --config=configs/quickstart.py --workdir=gs://bucket/quickstart
#
# On each host there is a checkout in ~/tljax with its .venv (.venv/bin/pip install -e '.[tpu]').
set -euo pipefail
printf -v arguments ' %q' "$@"
gcloud compute tpus tpu-vm ssh "${TPU:?the name of the slice}" --zone="${ZONE:?its zone}" --worker=all \
    --command="cd tljax && .venv/bin/python -m tljax$arguments --coordinator=auto"
