//! What a host has other controllers asked.

use futures_util::StreamExt;
use osapi::error::Kind;
use osapi::link::{Answer, Ask, MOST_TOLD, Next, Tell};
use serde_json::json;

use super::bench::{Host, call, controller, done, told};
use crate::broker::{self, Broker};

/// Jobs in the memory of as many other controllers, none of which is there.
fn elsewhere(count: usize) -> Vec<String> {
    (1..=count).map(|mark| format!("01900000-0000-7000-8000-00000000{mark:04x}")).collect()
}

fn finish(count: usize) -> Ask {
    Ask::Finish(elsewhere(count).iter().map(|job| told(job, done())).collect())
}

fn tell(count: usize) -> Ask {
    let tell = |job| Tell { job, data: json!({}) };
    Ask::Tell(elsewhere(count).into_iter().map(tell).collect())
}

fn look(count: usize) -> Ask {
    let done = elsewhere(count).iter().map(|job| told(job, done())).collect();
    Ask::Next(Next { done, ..Next::default() })
}

fn fetch() -> Ask {
    Ask::Fetch { job: elsewhere(1).remove(0), object: "x".to_owned(), offset: 0 }
}

#[tokio::test]
async fn other_controllers_are_asked_no_more_than_an_agent_tells_and_nothing_for_a_stranger() {
    if !broker::is_there("what goes to other controllers") {
        return;
    }
    let broker = Broker::start();
    let one = controller(&broker, "one").await;
    let host = Host::there(&broker, "m1", &[&one]).await;
    let spy = async_nats::connect(broker.address()).await.unwrap();
    let mut heard = spy.subscribe("osapi.desk.*").await.unwrap();
    spy.flush().await.unwrap();
    // What was passed on came before the answer, and so before this.
    let mut passed = async || {
        spy.publish("osapi.desk.end", "".into()).await.unwrap();
        let mut count = 0;
        while heard.next().await.unwrap().subject.as_str() != "osapi.desk.end" {
            count += 1;
        }
        count
    };
    for ask in [finish(MOST_TOLD + 1), tell(MOST_TOLD + 1), look(MOST_TOLD + 1)] {
        assert_eq!(host.refused(&ask).await, Kind::TooLarge);
    }
    assert_eq!(passed().await, 0);
    call(&one, "agent.reject", json!({ "hostname": "m1" })).await.unwrap();
    for ask in [finish(2), tell(2), look(2), fetch()] {
        assert_eq!(host.refused(&ask).await, Kind::Unavailable);
    }
    assert_eq!(passed().await, 0, "nobody believes it");
    one.stop().await;

    let one = controller(&broker, "two").await;
    let host = Host::there(&broker, "m2", &[&one]).await;
    drop(heard);
    for ask in [finish(MOST_TOLD), look(MOST_TOLD)] {
        host.ask(&ask).await.unwrap();
    }
    assert!(matches!(host.ask(&tell(MOST_TOLD)).await.unwrap(), Answer::Unheard));
    one.stop().await;
}
