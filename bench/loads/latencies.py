"""What a load generator prints at its end."""

import json
from collections.abc import Sequence


def tell(latencies: Sequence[float], seconds: float) -> None:
    ordered = sorted(latencies)
    print(
        json.dumps(
            {
                "per_second": len(ordered) / seconds,
                "p50_ms": ordered[len(ordered) // 2] * 1000,
                "p99_ms": ordered[len(ordered) * 99 // 100] * 1000,
            }
        )
    )
