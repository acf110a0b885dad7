//! Which consumer group reads which topics, in one place: what may be trimmed and how far each is behind follow from it.

use schemas::Topic;

/// A group and what it reads.
pub type Group = (&'static str, &'static [Topic]);

/// All of them.
pub const GROUPS: [Group; 3] =
    [(ingest::GROUP, &[Topic::Commands]), (fanout::GROUP, &fanout::TOPICS), (archiver::GROUP, &archiver::TOPICS)];

/// One of them.
pub fn of_group(name: &str) -> Vec<Group> {
    GROUPS.into_iter().filter(|(group, _)| *group == name).collect()
}

/// The groups that read a topic.
pub fn of(topic: Topic) -> impl Iterator<Item = &'static str> {
    GROUPS.into_iter().filter(move |(_, topics)| topics.contains(&topic)).map(|(group, _)| group)
}
