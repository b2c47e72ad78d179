//! What a round puts on record, and what becomes of notes whose link was not taken.

use std::sync::atomic::Ordering;

use serde_json::json;

use super::{BATCH, Writer};
use crate::broker::Line;
use crate::error::{Error, Kind, Result};
use crate::job::encode;
use crate::store::Step;
use crate::store::audit::{Chain, Note};
use crate::store::nats::chains::Chains;
use crate::store::nats::flight::Flight;
use crate::store::nats::jetstream::Outgoing;
use crate::store::nats::{AROUND, lock};

/// How often a link is tried that another writer of this name got ahead of.
const TRIES: usize = 3;
/// How many notes are kept whose link was refused, though their steps were not, and how many bytes.
const OWED: usize = 4096;
const OWED_BYTES: usize = 4 << 20;

/// What goes on record with the steps of a round.
#[derive(Default)]
pub(super) struct Noting {
    /// The chains as they are once the links are stored; nothing once they are.
    pub(super) next: Option<Chains>,
    pub(super) links: Vec<Outgoing>,
    /// Takes the place of links that these let go of.
    pub(super) gone: Vec<Outgoing>,
    /// What was owed before.
    pub(super) owed: Vec<Note>,
    /// How many lost notes it tells of.
    missed: u64,
}

/// Links of which nobody has said whether they are stored.
pub(super) struct Doubtful {
    /// The chains if they are.
    chains: Chains,
    /// What is owed if they are not.
    notes: Vec<Note>,
    missed: u64,
}

impl Writer {
    /// What goes on record with the steps.
    pub(super) async fn noting(&mut self, line: &Line, steps: &[Step]) -> Result<Noting> {
        let (missed, owed) = (self.shared.queue.lost(), std::mem::take(&mut self.owed));
        let mut noting = Noting { owed, missed, next: None, links: Vec::new(), gone: Vec::new() };
        match self.link(line, &mut noting, steps).await {
            Ok(()) => Ok(noting),
            Err(error) => {
                self.owe(noting.owed);
                Err(error)
            }
        }
    }

    /// Finds the links that come next, and the chains as they are with these.
    async fn link(&self, line: &Line, noting: &mut Noting, steps: &[Step]) -> Result<()> {
        let (shared, mut next) = (&self.shared, self.chains.clone());
        let missed = noting.missed;
        let said = (missed > 0).then(|| Note::Event(json!({ "lost_notes": missed })));
        let of_steps = steps.iter().flat_map(|step| &step.notes);
        let notes: Vec<_> = noting.owed.iter().chain(&said).chain(of_steps).collect();
        let bounds = shared.bounds();
        let room = *lock(&shared.room);
        // The log gives way before the server refuses everything.
        let is_short = room.records + room.audit > room.bound - room.bound / 32;
        let now = shared.time.load(Ordering::Relaxed);
        for chain in Chain::ALL {
            let is_of = |note: &Note| note.is_idle() == (chain == Chain::Refusals);
            if notes.iter().copied().any(is_of) {
                next.retain(line, shared.stream(), chain, (&bounds, is_short), now).await?;
            }
        }
        let most = line.room.saturating_sub(AROUND);
        noting.links = next.add(&notes, shared.clock.wall(), (shared.bounds.audit_age, most))?;
        noting.gone = next.take_dropped();
        noting.next = Some(next);
        Ok(())
    }

    /// Has links stored before the steps, where there are several of a chain. They are stored
    /// together: one that were refused by itself would be missing before those behind it.
    pub(super) async fn link_ahead(
        &mut self,
        line: &Line,
        noting: &mut Noting,
        (steps, flight): (&[Step], &mut Flight),
    ) -> Result<()> {
        let mut linked = self.as_batches(line, &std::mem::take(&mut noting.links)).await;
        for _ in 0..TRIES {
            let Err(error) = &linked else { break };
            if error.kind() != Kind::Conflict {
                break;
            }
            linked = self.link_behind(line, noting, steps).await;
        }
        match linked {
            Ok(()) => self.noted(noting),
            // What makes room, or was promised, may still fit.
            Err(error) if error.kind() == Kind::Full && steps.iter().any(Step::is_urgent) => {
                flight.turn_away(steps, &error, Step::is_urgent);
                let noting = std::mem::take(noting);
                self.doubt(noting, notes_of(steps));
            }
            Err(error) => {
                let noting = std::mem::take(noting);
                self.doubt(noting, Vec::new());
                let is_twin = error.kind() == Kind::Conflict;
                let message = "another controller has the name of this one, and writes as well";
                // It is none of the steps that are in conflict.
                return Err(if is_twin { Error::new(Kind::Unavailable, message) } else { error });
            }
        }
        Ok(())
    }

    /// Puts what is noted behind the link of another writer of this name that got ahead.
    async fn link_behind(
        &mut self,
        line: &Line,
        noting: &mut Noting,
        steps: &[Step],
    ) -> Result<()> {
        self.is_known = false;
        self.find_chains(line).await?;
        self.shared.has_twin.store(true, Ordering::Relaxed);
        tracing::warn!("another controller has the name of this one; give each its own");
        self.link(line, noting, steps).await?;
        self.as_batches(line, &std::mem::take(&mut noting.links)).await
    }

    async fn as_batches(&self, line: &Line, messages: &[Outgoing]) -> Result<()> {
        for page in messages.chunks(BATCH) {
            let last = line.batch(page.iter().map(Outgoing::copy).collect()).await?;
            lock(&self.shared.echo).stored_all(last, page.iter().map(|_| None));
        }
        Ok(())
    }

    /// Sees to notes whose link was not taken. Where another writer of this name got ahead, they go
    /// behind its link; otherwise steps that stand without them do not count as done, and the notes
    /// go with the next link, those that were owed before in any case.
    pub(super) async fn link_again(
        &mut self,
        line: &Line,
        mut error: Error,
        mut noting: Noting,
        (steps, flight): (&[Step], &mut Flight),
    ) {
        for _ in 0..TRIES {
            if error.kind() != Kind::Conflict {
                break;
            }
            match self.link_behind(line, &mut noting, steps).await {
                Ok(()) => return self.noted(&mut noting),
                Err(cause) => error = cause,
            }
        }
        let message = format!("the note of this could not be stored ({error}); it may be done");
        // What makes room, or was promised, does not wait for its note.
        let may_stand = |step: &Step| error.kind() == Kind::Full && step.is_urgent();
        let is_owed = flight.fell(steps, &message, may_stand);
        self.doubt(noting, if is_owed { notes_of(steps) } else { Vec::new() });
    }

    /// Sees to the notes of links that may not be stored: what was owed before, and `more` that were
    /// in these. Which ones are is found out before the next link.
    pub(super) fn doubt(&mut self, noting: Noting, more: Vec<Note>) {
        let Noting { next, mut owed, missed, .. } = noting;
        self.is_known = false;
        owed.extend(more);
        match next {
            Some(chains) => self.doubtful = Some(Doubtful { chains, notes: owed, missed }),
            None => self.owe(owed),
        }
    }

    /// Owes what the stream does not have of the notes that it was uncertain about.
    async fn settle_doubts(&mut self, line: &Line) -> Result<()> {
        let Some(doubtful) = &self.doubtful else { return Ok(()) };
        let (mut is_there, stream) = ([false; 2], self.shared.stream());
        for (is_there, chain) in is_there.iter_mut().zip(Chain::ALL) {
            *is_there = doubtful.chains.is_stored(line, stream, chain).await?;
        }
        let [has_requests, has_refusals] = is_there;
        if let Some(Doubtful { mut chains, mut notes, missed }) = self.doubtful.take() {
            notes.retain(|note| !if note.is_idle() { has_refusals } else { has_requests });
            self.owe(notes);
            if has_requests {
                self.told(&mut chains, missed);
            }
        }
        Ok(())
    }

    pub(super) fn owe(&mut self, notes: Vec<Note>) {
        let before = self.owed.len() + notes.len();
        self.owed.extend(notes);
        self.owed.truncate(OWED);
        let mut room = OWED_BYTES;
        self.owed.retain(|note| {
            let left = encode(note).ok().and_then(|encoded| room.checked_sub(encoded.len()));
            room = left.unwrap_or(room);
            left.is_some()
        });
        self.shared.queue.lose((before - self.owed.len()) as u64);
    }

    /// Makes sure that the chains go on from what the stream has.
    pub(super) async fn find_chains(&mut self, line: &Line) -> Result<()> {
        if !self.is_known {
            let name = &self.shared.bus.settings.name;
            self.chains = Chains::load(line, self.shared.stream(), name).await?;
            self.settle_doubts(line).await?;
            self.is_known = true;
            self.show();
        }
        Ok(())
    }

    /// The links are stored.
    pub(super) fn noted(&mut self, noting: &mut Noting) {
        let Some(mut next) = noting.next.take() else { return };
        self.told(&mut next, noting.missed);
        self.chains = next;
        noting.owed.clear();
        self.show();
    }

    /// The log tells of `missed` notes that were lost. What `chains` have no room for is lost now.
    fn told(&self, chains: &mut Chains, missed: u64) {
        self.shared.queue.lose(chains.take_lost());
        self.shared.queue.told(missed);
        lock(&self.shared.room).figures.lost_notes += missed;
    }

    fn show(&self) {
        *lock(&self.shared.ends) = self.chains.ends();
        lock(&self.shared.room).audit = self.chains.bytes();
    }

    /// Lets the links go that a link just stored says are dropped. What stays is found at the next
    /// start.
    pub(super) async fn bury(&self, line: &Line, gone: Vec<Outgoing>) {
        if let Err(error) = self.as_batches(line, &gone).await {
            tracing::warn!(%error, "old links of the audit log are still there");
        }
    }
}

fn notes_of(steps: &[Step]) -> Vec<Note> {
    steps.iter().flat_map(|step| &step.notes).cloned().collect()
}
