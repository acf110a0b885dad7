//! Which consumer group reads which topics, in one place: what may be trimmed and how far each is behind follow from it.

use schemas::Topic;

/// The groups and what they read.
pub const GROUPS: [(&str, &[Topic]); 3] =
    [(ingest::GROUP, &[Topic::Commands]), (fanout::GROUP, &fanout::TOPICS), (archiver::GROUP, &archiver::TOPICS)];

/// The groups that read a topic.
pub fn of(topic: Topic) -> impl Iterator<Item = &'static str> {
    GROUPS.into_iter().filter(move |(_, topics)| topics.contains(&topic)).map(|(group, _)| group)
}
