//! What is dealt out, and when.

use proptest::prelude::*;

use super::*;

fn lane(high: bool, used: u32, wants_more: bool) -> Demand {
    Demand { high, most: u32::MAX, used, wants_more }
}

#[test]
fn one_busy_lane_gets_everything_and_the_others_one_each() {
    assert_eq!(deal(8, &[lane(true, 0, false), lane(false, 5, true)]), [1, 8]);
    assert_eq!(deal(8, &[lane(true, 0, false), lane(false, 5, true), lane(true, 0, false)]), [1, 8, 1]);
}

#[test]
fn of_two_busy_lanes_the_high_one_gets_more_and_the_normal_one_some() {
    assert_eq!(deal(8, &[lane(true, 8, true), lane(false, 8, true)]), [6, 2]);
    assert_eq!(deal(1, &[lane(true, 1, true), lane(false, 1, true)]), [1, 1]);
}

#[test]
fn a_lane_keeps_what_it_used_and_one_more() {
    assert_eq!(deal(8, &[lane(true, 1, false), lane(false, 6, true)]), [2, 7]);
}

#[test]
fn nothing_is_dealt_out_to_a_paused_pool_or_by_a_full_host() {
    let paused = Demand { most: 0, ..lane(true, 3, true) };
    assert_eq!(deal(4, &[paused, lane(false, 3, true)]), [0, 4]);
    assert_eq!(deal(0, &[lane(true, 3, true), lane(false, 0, false)]), [0, 0]);
}

proptest! {
    #[test]
    fn no_more_than_the_budget_and_one_for_each_lane(
        budget in 0_u32..300, lanes in prop::collection::vec(any::<(bool, u8, u8, bool)>(), 1..12),
    ) {
        let demand = |(high, most, used, wants_more): (bool, u8, u8, bool)| {
            Demand { high, most: most.into(), used: used.into(), wants_more }
        };
        let demands: Vec<_> = lanes.into_iter().map(demand).collect();
        let shares = deal(budget, &demands);
        let count = u32::try_from(demands.len()).unwrap();
        prop_assert!(shares.iter().sum::<u32>() <= budget + count);
        for (share, demand) in shares.iter().zip(&demands) {
            prop_assert!(*share <= demand.most);
            prop_assert!(budget == 0 || demand.most == 0 || *share > 0, "{demands:?} got {shares:?}");
        }
    }

    /// On the way to a settled load consumers may change, then no more.
    #[test]
    fn a_steady_load_comes_to_rest(budget in 1_u32..64, loads in prop::collection::vec(0_u32..80, 2..8)) {
        let mut shares = vec![0; loads.len()];
        let round = |shares: &[u32]| {
            let demand = |(i, (load, share)): (usize, (&u32, &u32))| {
                let used = *load.min(share);
                Demand { high: i % 2 == 0, most: u32::MAX, used, wants_more: used >= *share }
            };
            deal(budget, &loads.iter().zip(shares).enumerate().map(demand).collect::<Vec<_>>())
        };
        for _ in 0..20 {
            shares = round(&shares);
        }
        prop_assert_eq!(round(&shares), shares);
    }
}
