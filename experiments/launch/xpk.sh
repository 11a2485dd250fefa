#!/bin/bash
# {{about}} The storage is a bucket attached to the cluster with `xpk storage attach`, mounted at /results. The image holds
# the project with the extras tpu and experiments.
set -euo pipefail
for share in $(seq 0 {{last}}); do
  xpk workload create \
    --cluster={{cluster}} \
    --project={{project}} \
    --zone={{zone}} \
    --workload="{{name}}-$share" \
    --tpu-type={{tpu_type}} \
    --num-slices=1 \
    --docker-image={{image}} \
    --storage={{storage}} \
    --max-restarts=10 \
    --command="{{command}}{{part}}"
done
