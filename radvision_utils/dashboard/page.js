// The page works without this script; it adds steps, sort, filter, window and keys, and shows their controls.
(function () {
  'use strict';
  var byId = function (id) { return document.getElementById(id); };
  var root = document.documentElement, list = byId('cards'), filters = byId('filters');
  var all = Array.prototype.slice.call(list.children);
  if (!all.length) return;
  var AT_ONCE = 12;  // cards, as in page.py; more come when one is at their end
  var shown = all, at = -1, first = 0, last = AT_ONCE, hidden = 0, hiddenBelow = 0;
  var WINDOWS = ['full', 'lung', 'soft tissue', 'bone'];  // as in page.css
  var STRENGTHS = ['off', 'faint', 'medium', 'strong'];  // as in radiograph.py
  var ranks = new Map(), verdicts = new Map(), flags = new Map(), words = new Map();
  all.forEach(function (card) {
    ranks.set(card, card.dataset.ranks.split(' ').map(Number));
    verdicts.set(card, JSON.parse(card.dataset.verdicts));
    flags.set(card, JSON.parse(card.dataset.flags));
    card.tabIndex = -1;
  });

  function chosen(id) { return byId(id) ? byId(id).value : ''; }
  function text(card, denial) {  // what is said of the study but for what is denied; of a denial, all its words
    if (!denial) return card.dataset.said;
    if (!words.has(card)) {
      var parts = card.querySelectorAll('.rv-head, .rv-texts');
      words.set(card, Array.prototype.map.call(parts, function (e) { return e.textContent; }).join(' ').toLowerCase());
    }
    return words.get(card);
  }
  function fits(card) {
    var observation = chosen('observation'), verdict = chosen('verdict'), flag = chosen('flag');
    var search = chosen('search').trim().toLowerCase();
    return (!flag || flags.get(card).indexOf(flag) >= 0)
      && (!(observation || verdict) || verdicts.get(card).some(function (pair) {
        return (!observation || pair[0] === observation) && (!verdict || pair[1] === verdict);
      }))
      && (!search || text(card, /^(no|not|without) /.test(search)).indexOf(search) >= 0);
  }
  function arrange() {
    var order = Number(chosen('order'));
    hideSentences();
    all.sort(function (a, b) { return ranks.get(a)[order] - ranks.get(b)[order]; });
    shown = all.filter(fits);
    all.forEach(function (card) { list.appendChild(card); });
    unroll(0, AT_ONCE);
    mark(-1);
  }
  function unroll(from, to) {  // those shown of the chosen studies
    first = Math.max(from, 0);
    last = Math.min(to, shown.length);
    all.forEach(function (card) { card.hidden = true; });
    shown.slice(first, last).forEach(function (card) { card.hidden = false; });
    byId('earlier').hidden = first === 0;
    byId('more').hidden = last === shown.length;
  }

  function hideSentences() {  // below the chosen agreement; each section says how many
    var least = Number(chosen('least')), samples = byId('least') ? byId('least').dataset.samples : 0;
    if (least === hiddenBelow) return;
    hiddenBelow = least;
    hidden = 0;
    Array.prototype.forEach.call(list.querySelectorAll('.rv-sentences'), function (sentences) {
      var here = 0;
      Array.prototype.forEach.call(sentences.children, function (sentence) {
        sentence.hidden = Number(sentence.dataset.agreement) < least;  // without an agreement: NaN, never hidden
        here += sentence.hidden;
      });
      hidden += here;
      sentences.nextElementSibling.textContent = here ? hiddenWords(here, least, samples) : '';
    });
    if (hidden) hidden = hiddenWords(hidden, least, samples);
  }
  function hiddenWords(count, least, samples) {
    return count + (count === 1 ? ' sentence' : ' sentences') + ' hidden below ' + least + ' of ' + samples;
  }
  function mark(index) {
    at = index;
    var total = shown.length === all.length ? '' : ' (of ' + all.length + ')';
    byId('where').textContent = (at < 0 ? '' : (at + 1) + ' of ') + (shown.length || 'no') + ' '
      + byId('where').dataset.things + (shown.length ? '' : ' match') + total + (hidden ? '; ' + hidden : '');
    byId('choose').setAttribute('aria-pressed', at >= 0 && shown[at].classList.contains('chosen'));
  }
  function show(index) {
    document.querySelector('.studies').open = false;
    if (at >= 0 && shown[at]) shown[at].classList.remove('revealed');
    if (index < first || index >= last) unroll(index - 1, index + AT_ONCE);
    mark(index);
    shown[at].focus({ preventScroll: true });
    shown[at].scrollIntoView({ block: 'start' });
  }
  function go(step) {
    if (!shown.length) return;
    show(Math.min(Math.max(at + step, 0), shown.length - 1));
    history.replaceState(null, '', '#' + shown[at].id);
  }
  function follow() {
    var card = byId(location.hash.slice(1));
    if (all.indexOf(card) < 0) {
      if (/^#uid=/.test(location.hash)) {
        byId('where').textContent = 'There is no ' + location.hash.slice(5) + ' on this page; it shows '
          + all.length + ' ' + byId('where').dataset.things;
        byId('where').scrollIntoView({ block: 'center' });
      }
      return;
    }
    if (shown.indexOf(card) < 0) { filters.reset(); setTimeout(follow); return; }  // once the reset has arranged all
    show(shown.indexOf(card));
  }

  function invert() {
    byId('invert').setAttribute('aria-pressed', root.classList.toggle('inverted'));
  }
  function nextWindow() {
    var next = WINDOWS[(WINDOWS.indexOf(root.dataset.window || 'full') + 1) % WINDOWS.length];
    root.dataset.window = next;
    byId('window').textContent = 'Window: ' + next;
  }
  function strengthen(strength) {  // one switch for all cards
    Array.prototype.forEach.call(list.querySelectorAll('.rv-strength [value=' + strength + ']'), function (button) {
      button.checked = true;
    });
    byId('evidence').textContent = 'Evidence: ' + strength;
  }
  function nextStrength() {
    var button = byId('evidence');
    if (button) strengthen(STRENGTHS[(STRENGTHS.indexOf(button.textContent.slice(10)) + 1) % STRENGTHS.length]);
  }
  function choose() {
    if (at < 0) go(1);
    if (at < 0) return;
    shown[at].classList.toggle('chosen');
    mark(at);
  }
  function veil() {
    var on = root.classList.toggle('veiled');
    byId('veil').setAttribute('aria-pressed', on);
    all.forEach(function (card) { card.classList.remove('revealed'); });
  }
  function reveal() {
    if (!root.classList.contains('veiled')) veil();
    else if (at >= 0) shown[at].classList.toggle('revealed');
    else veil();
  }
  function help() { if (!byId('keys').open) byId('keys').showModal(); }

  var KEYS = {
    ArrowLeft: function () { go(-1); }, ArrowRight: function () { go(1); },
    i: invert, w: nextWindow, e: nextStrength, r: reveal, p: choose, '?': help,
    '/': function () { byId('search').focus(); byId('search').select(); }
  };
  document.addEventListener('keydown', function (event) {
    var target = event.target;
    if (event.altKey || event.ctrlKey || event.metaKey || byId('keys').open) return;
    if (event.key === 'Escape' && filters.contains(target)) { target.blur(); return; }
    var field = /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName);
    if (field && (target.type !== 'radio' || /^Arrow/.test(event.key)) || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  byId('previous').addEventListener('click', KEYS.ArrowLeft);
  byId('next').addEventListener('click', KEYS.ArrowRight);
  byId('invert').addEventListener('click', invert);
  byId('window').addEventListener('click', nextWindow);
  byId('veil').addEventListener('click', veil);
  byId('choose').addEventListener('click', choose);
  byId('earlier').addEventListener('click', function () { unroll(first - AT_ONCE, last); });
  byId('more').addEventListener('click', function () { unroll(first, last + AT_ONCE); });
  if ('IntersectionObserver' in window) {
    new IntersectionObserver(function (met) {
      if (met[0].isIntersecting) unroll(first, last + AT_ONCE);
    }, { rootMargin: '600px' }).observe(byId('more'));
  }
  byId('help').addEventListener('click', help);
  if (byId('evidence')) byId('evidence').addEventListener('click', nextStrength);
  list.addEventListener('change', function (event) { if (event.target.type === 'radio') strengthen(event.target.value); });
  filters.addEventListener('input', function (event) {
    if (event.target.id !== 'least') { arrange(); return; }
    hideSentences();  // the study at hand stays
    mark(at);
  });
  filters.addEventListener('submit', function (event) { event.preventDefault(); });
  filters.addEventListener('reset', function () { setTimeout(arrange); });
  window.addEventListener('hashchange', follow);
  filters.hidden = byId('bar').hidden = false;
  function makeRoom() {  // below the bar, which stays in sight and takes one line or several
    var nav = byId('bar').parentElement;
    var stays = getComputedStyle(nav).position === 'sticky';
    root.style.setProperty('--bar', stays ? nav.offsetHeight + 8 + 'px' : '8px');
  }
  makeRoom();
  window.addEventListener('resize', makeRoom);
  filters.reset();  // a reload keeps what was chosen, but not what is shown
  setTimeout(follow);
})();
