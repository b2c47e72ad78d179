//! What comes over the private socket, in both directions.

#![allow(unreachable_pub, reason = "fuzz targets and tests both call it")]

use osapi::error::ErrorBody;
use osapi::job::Task;
use osapi::link::{Answer, Ask, parse_frame};

pub fn run(data: &[u8]) {
    if let Ok(Some((_, taken))) = parse_frame::<Ask>(data) {
        assert!(taken <= data.len());
    }
    if let Ok(Some((answer, taken))) = parse_frame::<Result<Answer, ErrorBody>>(data) {
        assert!(taken <= data.len());
        if let Ok(Answer::Tasks { tasks, .. }) = answer {
            for sealed in tasks {
                let _ = serde_json::from_str::<Task>(&sealed.body);
            }
        }
    }
}
