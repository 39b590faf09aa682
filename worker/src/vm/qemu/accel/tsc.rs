//! The frequency of the host's time stamp counter, which a guest in software emulation cannot measure.

/// The host's TSC in kHz, best source first. `cpu MHz` comes last because it follows frequency
/// scaling where the processor does that; virtual hosts, where TCG is needed, do not show any.
pub fn host_tsc_khz() -> Option<u32> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse().ok();
    number("/sys/devices/system/cpu/cpu0/tsc_freq_khz")
        .or_else(|| number("/sys/devices/system/cpu/cpu0/cpufreq/base_frequency"))
        .or_else(|| tsc_from_cpuinfo(&std::fs::read_to_string("/proc/cpuinfo").ok()?))
}

fn tsc_from_cpuinfo(text: &str) -> Option<u32> {
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_once(':').map(|(_, value)| value.trim())
    };
    let nominal =
        field("model name").and_then(|model| model.rsplit_once('@')?.1.trim().strip_suffix("GHz")?.parse::<f64>().ok());
    let mhz = nominal.map(|ghz| ghz * 1000.0).or_else(|| field("cpu MHz")?.parse::<f64>().ok())?;
    // Outside of this it is a misreading, and a wrong clock is worse than a calibrating one.
    (100.0..20_000.0).contains(&mhz).then_some((mhz * 1000.0).round() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nominal_frequency_wins_over_the_current_one() {
        let intel = "model name\t: Intel(R) Xeon(R) CPU @ 2.80GHz\ncpu MHz\t\t: 800.012\n";
        assert_eq!(tsc_from_cpuinfo(intel), Some(2_800_000));
        assert_eq!(tsc_from_cpuinfo("model name\t: AMD EPYC\ncpu MHz\t\t: 2596.150\n"), Some(2_596_150));
        assert_eq!(tsc_from_cpuinfo("cpu MHz\t: 0.0\n"), None);
        assert_eq!(tsc_from_cpuinfo(""), None);
    }
}
