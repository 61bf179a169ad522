"""An electrocardiogram of three limb leads from a sum of bumps, in integers only."""

from fastledger.workload.prng import SplitMix64

SAMPLE_PERIOD_MS = 4
MICROVOLTS_PER_UNIT = 5

# Wave: centre after the beat's start in ms, half width in ms, height in lead I and in lead II in microvolts.
_WAVES = (
    (160, 48, 70, 120),  # P
    (252, 14, -60, -90),  # Q
    (276, 20, 620, 1050),  # R
    (300, 16, -150, -230),  # S
    (480, 90, 190, 310),  # T
)


def three_leads(random: SplitMix64, sample_count: int, heart_rate: int) -> tuple[list[int], ...]:
    """Returns leads I, II and III of ``sample_count`` samples each; III is II - I, by Einthoven's law.

    A sample is in units of 5 microvolts, one every 4 ms; ``heart_rate`` in beats per minute varies by a few percent.
    """
    microvolts_i, microvolts_ii = [0] * sample_count, [0] * sample_count
    start_ms = -random.between(0, 400)
    while start_ms < sample_count * SAMPLE_PERIOD_MS:
        for centre_ms, half_ms, height_i, height_ii in _WAVES:
            _add_bump(microvolts_i, start_ms + centre_ms, half_ms, height_i)
            _add_bump(microvolts_ii, start_ms + centre_ms, half_ms, height_ii)
        start_ms += 60_000 // heart_rate * random.between(95, 105) // 100
    lead_i = [value // MICROVOLTS_PER_UNIT + random.between(-2, 2) for value in microvolts_i]
    lead_ii = [value // MICROVOLTS_PER_UNIT + random.between(-2, 2) for value in microvolts_ii]
    lead_iii = [second - first for first, second in zip(lead_i, lead_ii, strict=True)]
    return lead_i, lead_ii, lead_iii


def _add_bump(samples: list[int], centre_ms: int, half_ms: int, height: int) -> None:
    """Add ``height * (1 - (t / half)^2)^2`` around the centre."""
    first = max(0, -(-(centre_ms - half_ms) // SAMPLE_PERIOD_MS))
    last = min(len(samples) - 1, (centre_ms + half_ms) // SAMPLE_PERIOD_MS)
    for index in range(first, last + 1):
        offset_ms = index * SAMPLE_PERIOD_MS - centre_ms
        rest = half_ms * half_ms - offset_ms * offset_ms
        samples[index] += height * rest * rest // half_ms**4
