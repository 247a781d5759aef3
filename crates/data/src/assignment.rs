//! The assignment of rows to columns that costs least.

/// For each row of `costs` (all of one length, finite) its column: no column twice, as many rows as there are columns
/// for, the sum as small as can be. Shortest augmenting paths (Crouse, "On implementing 2D rectangular assignment
/// algorithms", 2016), which SciPy's `linear_sum_assignment` also uses; of equal sums the same one is found.
fn cheapest(costs: &[Vec<f64>]) -> Vec<Option<usize>> {
    let (rows, columns) = (costs.len(), costs.first().map_or(0, Vec::len));
    if rows <= columns {
        return assign(rows, columns, |row, column| costs[row][column]).into_iter().map(Some).collect();
    }
    let mut assigned = vec![None; rows];
    for (column, row) in assign(columns, rows, |column, row| costs[row][column]).into_iter().enumerate() {
        assigned[row] = Some(column);
    }
    assigned
}

/// For each picture the sentence that it goes to, no two to one, and its similarity to it, so that all similarities
/// together are as great as can be; `None` for pictures that are too many. A row of `similarities` is a picture's.
pub(crate) fn most_similar(similarities: &[Vec<f64>]) -> Vec<Option<(usize, f64)>> {
    let costs: Vec<Vec<f64>> = similarities.iter().map(|row| row.iter().map(|x| -x).collect()).collect();
    let place = |(place, row): (Option<usize>, &Vec<f64>)| place.map(|place| (place, row[place]));
    cheapest(&costs).into_iter().zip(similarities).map(place).collect()
}

/// As [`cheapest`], with as many columns as rows at least.
fn assign(rows: usize, columns: usize, cost: impl Fn(usize, usize) -> f64) -> Vec<usize> {
    let (mut row_price, mut column_price) = (vec![0.0; rows], vec![0.0; columns]);
    let mut column_of = vec![usize::MAX; rows];
    let mut row_of: Vec<Option<usize>> = vec![None; columns];
    for start in 0..rows {
        // Dijkstra over columns, from the row that is still free to a column that is.
        let mut distance = vec![f64::INFINITY; columns];
        let mut from = vec![0; columns];
        // Backwards, so that of equal columns the first is found.
        let mut open: Vec<usize> = (0..columns).rev().collect();
        let (mut reached_rows, mut reached_columns) = (vec![start], Vec::new());
        let (mut row, mut travelled) = (start, 0.0);
        let sink = loop {
            let (mut best, mut lowest) = (0, f64::INFINITY);
            for (place, &column) in open.iter().enumerate() {
                let there = travelled + cost(row, column) - row_price[row] - column_price[column];
                if there < distance[column] {
                    (distance[column], from[column]) = (there, row);
                }
                // Of equal columns one that is free ends the search.
                if distance[column] < lowest || distance[column] == lowest && row_of[column].is_none() {
                    (best, lowest) = (place, distance[column]);
                }
            }
            travelled = lowest;
            let column = open.swap_remove(best);
            reached_columns.push(column);
            match row_of[column] {
                None => break column,
                Some(next) => row = next,
            }
            reached_rows.push(row);
        };
        row_price[start] += travelled;
        for &row in &reached_rows[1..] {
            row_price[row] += travelled - distance[column_of[row]];
        }
        for &column in &reached_columns {
            column_price[column] -= travelled - distance[column];
        }
        let mut column = sink;
        loop {
            let row = from[column];
            row_of[column] = Some(row);
            std::mem::swap(&mut column_of[row], &mut column);
            if row == start {
                break;
            }
        }
    }
    column_of
}

#[cfg(test)]
mod tests {
    use super::{cheapest, most_similar};

    /// The least sum, by trying everything.
    fn least(costs: &[Vec<f64>], row: usize, taken: &mut Vec<bool>, skips: usize) -> f64 {
        if row == costs.len() {
            return 0.0;
        }
        let mut best = if skips > 0 { least(costs, row + 1, taken, skips - 1) } else { f64::INFINITY };
        for column in 0..taken.len() {
            if !taken[column] {
                taken[column] = true;
                best = best.min(costs[row][column] + least(costs, row + 1, taken, skips));
                taken[column] = false;
            }
        }
        best
    }

    #[test]
    fn nothing_costs_less() {
        let mut state = 7u64;
        for round in 0..200 {
            let (rows, columns) = (1 + round % 5, 1 + round / 5 % 5);
            let mut draw = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 60) as f64
            };
            let costs: Vec<Vec<f64>> = (0..rows).map(|_| (0..columns).map(|_| draw()).collect()).collect();
            let found = cheapest(&costs);
            let mut columns_taken: Vec<usize> = found.iter().flatten().copied().collect();
            assert_eq!(columns_taken.len(), rows.min(columns));
            columns_taken.sort_unstable();
            columns_taken.dedup();
            assert_eq!(columns_taken.len(), rows.min(columns), "a column twice");
            let sum: f64 = found.iter().enumerate().filter_map(|(row, column)| Some(costs[row][(*column)?])).sum();
            let expected = least(&costs, 0, &mut vec![false; columns], rows.saturating_sub(columns));
            assert_eq!(sum, expected, "{costs:?}");
        }
        assert_eq!(cheapest(&[vec![1.0; 3], vec![1.0; 3]]), [Some(0), Some(1)]);
        assert_eq!(cheapest(&[]), []);
        assert_eq!(cheapest(&[vec![], vec![]]), [None, None]);
        assert_eq!(most_similar(&[vec![0.1, 0.3], vec![0.1, 0.4]]), [Some((0, 0.1)), Some((1, 0.4))]);
    }
}
